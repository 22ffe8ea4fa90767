"""Files made to break what reads them: each gives items or a line, and nothing else happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import hostile
import pytest

import vlmkit_retrieval

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, pipes and names of any bytes")
HERE = Path(__file__).parent
GIBIBYTE = 1024  # MiB
# Every Python process notes here that it looks up a name or reaches out, PDFium's process too.
GUARD = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:]}\\n")
sys.addaudithook(note)
"""


class Trap:
    """An address where nobody may knock, and processes that are watched."""

    def __init__(self, folder: Path) -> None:
        (folder / "guard").mkdir()
        (folder / "guard" / "sitecustomize.py").write_text(GUARD)
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0)
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}/x.png"

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        rooms = [self.folder / "guard", Path(vlmkit_retrieval.__file__).parents[1], *filter(None, sys.path)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, rooms)),
            "GUARD_LOG": str(self.log),
            "PYTHONWARNINGS": "ignore",  # Pillow's, of pictures that are refused
        }
        words = [sys.executable, *map(str, command)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)

    def knocks(self) -> int:
        count = 0
        while True:
            try:
                self.server.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    trap = Trap(tmp_path_factory.mktemp("trap"))
    yield trap
    trap.server.close()


@pytest.fixture(scope="module")
def told(trap, tmp_path_factory):
    top = tmp_path_factory.mktemp("hostile")
    hostile.build(top, trap.url)
    done = trap.run(HERE / "hostile_run.py", top / "corpus")
    assert (done.returncode, done.stderr) == (0, "")
    yield json.loads(done.stdout)
    shutil.rmtree(top)


CASES = hostile.cases("http://127.0.0.1:1/x.png")


def test_there_are_sixty_of_them():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_it_gives_items_or_a_line(told, name):
    case, found = CASES[name], told[name]
    assert found["items"] == case.items
    assert len(found["refused"]) == len(case.refused)
    for expected, line in zip(case.refused, found["refused"]):
        assert re.search(expected, line)
        assert line.isprintable()
        assert name in line
    assert found["items"] or found["refused"]
    assert not any(hostile.SECRET in text for text in found["texts"])


@pytest.mark.parametrize("name", CASES)
def test_memory_stays_under_a_gibibyte(told, name):
    assert told[name]["mebibytes"] < GIBIBYTE


def test_without_the_budget_of_pixels_memory_does_not(trap, told, tmp_path):
    """That the measurement sees it: the same file, the limit taken away."""
    corpus = tmp_path / "corpus"
    for name in ("png-400-megapixels", "one-pixel"):
        (corpus / name).mkdir(parents=True)
        CASES[name].build(corpus / name)
    done = trap.run(HERE / "hostile_run.py", corpus, "--no-pixel-budget")
    assert json.loads(done.stdout)["png-400-megapixels"]["mebibytes"] > GIBIBYTE


def test_nothing_is_fetched(trap, told):
    assert trap.log.read_text() == ""
    assert trap.knocks() == 0


def test_the_trap_sees_who_knocks(trap):
    program = (
        "import sys, urllib.request as u\ntry: u.urlopen(sys.argv[1], timeout=0.2)\nexcept OSError: pass"
    )
    trap.run("-c", program, trap.url)
    assert "socket.connect" in trap.log.read_text()
    assert trap.knocks() == 1
    trap.log.write_text("")


def test_template_tokens_are_kept_as_text(told):
    """Whoever writes a prompt must see what is there; what is cut out here could be put together again."""
    for name in ("caption-with-template-tokens", "text-with-addresses", "pdf-with-template-tokens"):
        assert "<image> <|im_end|>" in told[name]["texts"][0]
