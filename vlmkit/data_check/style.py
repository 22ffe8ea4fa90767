"""How the page of `page.py` looks: one style sheet, nothing is loaded."""

STYLE = """
:root { color-scheme: light dark; --bg: #fafaf8; --card: #fff; --ink: #1d1f23; --dim: #6b7078;
  --line: #dfe1e5; --learn: #bfe8c4; --slot: #d8e4fb; --bad: #b3261e; --mark: #d6336c; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171a; --card: #1e2125; --ink: #e7e9ec;
  --dim: #9aa0a8; --line: #353a41; --learn: #1f5a30; --slot: #263f6e; --bad: #ff8a80; --mark: #ff6b9d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 28px; } h1 { font-size: 24px; margin: 0 0 8px; }
h2 { font-size: 18px; margin: 36px 0 12px; } h2 small, .dim { color: var(--dim); font-weight: normal; }
.legend { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; color: var(--dim); }
.legend label { cursor: pointer; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 20px 20px; margin-bottom: 18px; }
article h3 { font-size: 15px; margin: 0 0 12px; overflow-wrap: anywhere; }
.images { display: flex; flex-direction: column; gap: 16px; margin-bottom: 16px; }
.image { display: flex; gap: 18px; align-items: flex-start; }
.image > figure { flex: none; width: 240px; }
.views { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
figure { margin: 0; } figcaption { font-size: 12px; color: var(--dim); margin-top: 4px; max-width: 240px; }
.frame { position: relative; display: inline-block; line-height: 0; border: 1px solid var(--line); }
.frame img { display: block; } .small img { image-rendering: pixelated; }
.box { position: absolute; border: 2px solid var(--mark); }
.box b { position: absolute; left: 0; top: 0; font: 11px/1.4 system-ui; color: #fff; background: var(--mark);
  padding: 0 4px; }
.grid { position: absolute; inset: 0; display: none; background-image:
  linear-gradient(to right, #ffffffb0 1px, transparent 1px),
  linear-gradient(to bottom, #ffffffb0 1px, transparent 1px); mix-blend-mode: difference; }
body:has(#patches:checked) .grid { display: block; }
.row { margin-top: 14px; } .row > p { margin: 0 0 4px; font-size: 13px; color: var(--dim); }
.branch { font: 14px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  padding: 1px 0 1px 10px; border-left: 3px solid var(--line); margin-bottom: 4px; }
.branch.own { margin-left: 26px; } .where { font: 12px system-ui; color: var(--dim); margin-right: 8px; }
.learn { background: var(--learn); border-radius: 3px; padding: 2px 0; }
.learn.part { background: color-mix(in srgb, var(--learn) 45%, transparent); }
body:has(#tokens:checked) .branch i:not(:empty) { outline: 1px solid var(--line); outline-offset: -1px; }
.branch i { font-style: normal; }
.branch i:hover { outline: 1px solid var(--ink); }
.slot { background: var(--slot); border-radius: 4px; padding: 2px 6px; font: 12px system-ui;
  white-space: nowrap; }
.slot img { height: 18px; vertical-align: -4px; margin-right: 5px; }
.captions { margin: 8px 0 0; padding-left: 20px; } .error { color: var(--bad); }
"""
