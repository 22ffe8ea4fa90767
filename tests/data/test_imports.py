"""What the room loads: formats, prompts, tokens and packing need neither torch nor transformers."""

import subprocess
import sys

MODULES = "formats, prompts, tokens, pack, chat_template, segments"


def test_light_modules_stay_light():
    loaded = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys; from vlmkit.data import {MODULES}; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
