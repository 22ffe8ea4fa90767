"""Emoji as several hands drew them: pictures and names out of archives of npm packages.

A concept is a hexcode without FE0F (which only asks for colour), so that the packages agree about it. Skin
tones and parts of flags are left out.
"""

import io
import json
import re
import sys
import tarfile
from pathlib import Path, PurePosixPath

from PIL import Image

SIDE = 64
# Groups of emojibase that are no concepts: parts of flags have none, and 2 is skin tones and hair.
NO_CONCEPTS = (None, 2)
PACKAGES = (
    "emojibase-data",
    "openmoji",
    "fluentui-emoji",
    "emoji-datasource-twitter",
    "emoji-datasource-google",
)
COMMANDS = f"""cd FOLDER
npm pack {" ".join(PACKAGES)}
pip install resvg-py"""


def archive(folder, package):
    """The newest archive of a package that `npm pack` has put into the folder."""
    named = re.compile(rf"{re.escape(package)}-\d[\w.]*\.tgz")
    found = sorted(path for path in Path(folder).iterdir() if named.fullmatch(path.name))
    if not found:
        sys.exit(f"{folder} has no {package}-VERSION.tgz; these commands bring what is needed:\n{COMMANDS}")
    return found[-1]


def members(folder, package, pattern):
    """(stem, content) of the files of a package whose path below its root matches."""
    with tarfile.open(archive(folder, package)) as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and re.fullmatch(pattern, str(path)):
                yield path.stem, tar.extractfile(member).read()


def hexcode(stem):
    """The concept that a file name or a code is of."""
    return stem.upper().replace("-FE0F", "")


def read_concepts(folder):
    """Names of the concepts by hexcode, in the order of the package."""
    [(_, content)] = members(folder, "emojibase-data", r"en/data\.json")
    rows = [row for row in json.loads(content) if row.get("group") not in NO_CONCEPTS]
    return {hexcode(row["hexcode"]): row["label"].lower() for row in rows}


def slug(label):
    """How fluentui-emoji writes a name."""
    return re.sub(r"[^a-z0-9]+", "-", label).strip("-")


def by_hexcode(folder, package, pattern, concepts):
    """Contents by concept, of a package that names files by hexcode."""
    found = ((hexcode(stem), content) for stem, content in members(folder, package, pattern))
    return {code: content for code, content in found if code in concepts}


def by_label(folder, style, concepts):
    """Contents by concept, of fluentui-emoji: files by name, and `-default` where there are skin tones."""
    files = dict(members(folder, "fluentui-emoji", rf"icons/{style}/[^/]+\.svg"))
    names = {code: slug(label) for code, label in concepts.items()}
    stems = {code: name if name in files else f"{name}-default" for code, name in names.items()}
    return {code: files[stem] for code, stem in stems.items() if stem in files}


def read_styles(folder, concepts):
    """Contents by style and concept; each is a PNG or an SVG."""
    return {
        "openmoji": by_hexcode(folder, "openmoji", r"color/svg/[^/]+\.svg", concepts),
        "fluent": by_label(folder, "flat", concepts),
        "fluent_modern": by_label(folder, "modern", concepts),
        "twemoji": by_hexcode(folder, "emoji-datasource-twitter", r"img/twitter/64/[^/]+\.png", concepts),
        "noto": by_hexcode(folder, "emoji-datasource-google", r"img/google/64/[^/]+\.png", concepts),
    }


def picture(content):
    """64x64 on white, cut to what is drawn and made square; None where nothing is drawn."""
    if not content.startswith(b"\x89PNG"):
        import resvg_py

        content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode(), width=2 * SIDE))
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    box = image.getchannel("A").getbbox()
    if box is None:
        return None
    image = image.crop(box)
    square = Image.new("RGBA", (max(image.size),) * 2, "white")
    square.alpha_composite(image, tuple((max(image.size) - side) // 2 for side in image.size))
    return square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
