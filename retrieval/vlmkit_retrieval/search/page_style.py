"""How the page of `page.py` looks: one style sheet, nothing is loaded."""

# One a list, in turn; told apart in light and in dark, and by the colour-blind (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8b6fd6", "#7f7f7f")

STYLE = """
:root { color-scheme: light dark; --bg: #fafaf8; --card: #fff; --ink: #1d1f23; --dim: #6b7078;
  --line: #dfe1e5; --well: #f0f0ec; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171a; --card: #1e2125; --ink: #e7e9ec;
  --dim: #9aa0a8; --line: #353a41; --well: #101214; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 1320px; margin: 0 auto; padding: 0 24px; }
header { display: flex; gap: 22px; align-items: center; padding-top: 28px; padding-bottom: 20px; }
header > div { min-width: 0; }
.asked { max-width: 180px; max-height: 150px; border-radius: 10px; border: 1px solid var(--line);
  flex: none; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
.eyebrow { margin: 0; font-size: 12px; letter-spacing: .06em; text-transform: uppercase; color: var(--dim); }
.dim { color: var(--dim); } header p.dim { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0 0; font-size: 13px;
  color: var(--dim); }
.legend b { font-weight: 600; color: var(--ink); }
.legend i, td i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px;
  background: var(--c, var(--dim)); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(264px, 1fr)); gap: 18px;
  align-items: start; padding-bottom: 48px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  min-width: 0; }
.frame { position: relative; background: var(--well); aspect-ratio: 4 / 3; display: grid;
  place-items: center; }
.frame:has(.none) { aspect-ratio: auto; min-height: 76px; padding: 0 44px; }
.frame img { width: 100%; height: 100%; position: absolute; object-fit: contain; }
.frame img.small { image-rendering: pixelated; padding: 12px; }
.none { color: var(--dim); font-size: 13px; margin: 0; padding: 16px 20px; text-align: center;
  overflow-wrap: anywhere; }
.rank { position: absolute; left: 10px; top: 10px; min-width: 26px; padding: 2px 8px; border-radius: 999px;
  background: #000000a8; color: #fff; font-size: 13px; text-align: center;
  font-variant-numeric: tabular-nums; }
.body { padding: 12px 14px 14px; }
.score { display: flex; align-items: center; gap: 10px; }
.score b { font-size: 13px; font-variant-numeric: tabular-nums; }
.bar { flex: 1; display: flex; height: 8px; border-radius: 4px; overflow: hidden; background: var(--line); }
.bar i { background: var(--c); }
.legend i.imputed, .bar i.imputed, td i.imputed { background: repeating-linear-gradient(135deg,
  var(--c, var(--dim)) 0 2px, color-mix(in srgb, var(--c, var(--dim)) 30%, transparent) 2px 5px); }
.words { margin: 10px 0 0; overflow-wrap: anywhere; white-space: pre-line; }
details summary { cursor: pointer; } details.words[open] summary { display: none; }
.path { margin: 8px 0 0; font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
.path small { display: block; font-weight: normal; font-size: 12px; color: var(--dim); }
table { width: 100%; margin-top: 10px; border-top: 1px solid var(--line); border-collapse: collapse;
  font-size: 12px; font-variant-numeric: tabular-nums; }
th { font-weight: normal; color: var(--dim); } td, th { padding: 3px 0 0 8px; text-align: right; }
tr:first-child > * { padding-top: 6px; }
td:first-child, th:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; }
.note { margin: 8px 0 0; font-size: 12px; color: var(--dim); }
.copies { margin-top: 10px; font-size: 12px; } .copies ul { margin: 6px 0 0; padding-left: 18px; }
.copies li { overflow-wrap: anywhere; }
.nothing { grid-column: 1 / -1; color: var(--dim); }
@media (max-width: 560px) {
  header, main { padding-left: 14px; padding-right: 14px; }
  header { flex-direction: column; align-items: flex-start; gap: 14px; padding-top: 18px; }
  h1 { font-size: 22px; } main { gap: 14px; }
}
"""
