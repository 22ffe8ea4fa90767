"""What the room loads: formats, prompts, tokens and packing need neither torch nor transformers."""

MODULES = "formats, prompts, tokens, pack, segments"


def test_light_modules_stay_light(python):
    loaded = "{'torch', 'transformers'} & set(sys.modules)"
    done = python(f"import sys; from vlmkit.data import {MODULES}; print({loaded})")
    assert done.stdout.strip() == "set()", done.stderr
