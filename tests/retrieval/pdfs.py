"""Writes small PDF files by hand, good and bad ones, so that the tests need no other writer."""

from __future__ import annotations

import hashlib
import zlib

CATALOG, TREE, FONT = 1, 2, 3
PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def stream(data: bytes, entries: str = "") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries.encode(), data)


def flate(data: bytes) -> bytes:
    return stream(zlib.compress(data), "/Filter /FlateDecode")


def text_stream(*lines: str) -> bytes:
    """Lines of text from the top of a page down."""
    shown = " ".join(f"({line}) Tj T*" for line in lines)
    return stream(f"BT /F1 12 Tf 14 TL 72 700 Td {shown} ET".encode("latin-1"))


def assemble(objects: dict[int, bytes], trailer: str = "") -> bytes:
    """A file of numbered objects with its table of places."""
    data, places = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", {}
    for number, body in sorted(objects.items()):
        places[number] = len(data)
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    last = max(objects)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (last + 1)
    for number in range(1, last + 1):
        table += b"%010d 00000 %s \n" % (places.get(number, 0), b"n" if number in places else b"f")
    end = f"trailer\n<< /Size {last + 1} /Root {CATALOG} 0 R {trailer} >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + table + end.encode()


def page_objects(contents, box="0 0 612 792", catalog="", page="") -> dict[int, bytes]:
    """One page for each content stream; page n (from 0 on) is object 10 + 2n, its stream the next one."""
    kids = " ".join(f"{10 + 2 * n} 0 R" for n in range(len(contents)))
    objects = {
        CATALOG: f"<< /Type /Catalog /Pages {TREE} 0 R {catalog} >>".encode(),
        TREE: f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        FONT: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    for n, content in enumerate(contents):
        resources = f"/Resources << /Font << /F1 {FONT} 0 R >> >>"
        objects[10 + 2 * n] = (
            f"<< /Type /Page /Parent {TREE} 0 R /MediaBox [{box}] {resources} "
            f"/Contents {11 + 2 * n} 0 R {page} >>"
        ).encode()
        objects[11 + 2 * n] = content
    return objects


def pdf(*pages: str, box: str = "0 0 612 792", outline=(), catalog: str = "", page: str = "") -> bytes:
    """A file with a page for each text; `outline` is (title, page from 0 on)."""
    contents = [text_stream(*text.split("\n")) for text in pages]
    first = 10 + 2 * len(pages)
    if outline:
        catalog += f" /Outlines {first} 0 R"
    objects = page_objects(contents, box, catalog, page)
    if outline:
        last = first + len(outline)
        objects[first] = f"<< /First {first + 1} 0 R /Last {last} 0 R /Count {len(outline)} >>".encode()
        for n, (title, target) in enumerate(outline, start=first + 1):
            following = f"/Next {n + 1} 0 R" if n < last else ""
            objects[n] = (
                f"<< /Title ({title}) /Parent {first} 0 R /Dest [{10 + 2 * target} 0 R /Fit] {following} >>"
            ).encode()
    return assemble(objects)


def encrypted(password: bytes) -> bytes:
    """A file that opens with a password only (the standard handler's revision 2, RC4 with 40 bits)."""
    padded = (password + PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    id, rights = b"0123456789abcdef", -4
    key = hashlib.md5(padded + owner + rights.to_bytes(4, "little", signed=True) + id).digest()[:5]
    objects = page_objects([text_stream("secret")])
    user = _rc4(key, PADDING)
    objects[4] = (
        f"<< /Filter /Standard /V 1 /R 2 /P {rights} /O <{owner.hex()}> /U <{user.hex()}> >>".encode()
    )
    return assemble(objects, f"/Encrypt 4 0 R /ID [<{id.hex()}> <{id.hex()}>]")


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def deflated_zeros(megabytes: int) -> bytes:
    """zlib data of so many MiB of zeros, put together from one block: quick, whatever the size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1024**2)) + packer.flush(zlib.Z_FULL_FLUSH)
    size = megabytes * 1024**2
    check = (size % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\x9c" + block * megabytes + b"\x03\x00" + check.to_bytes(4, "big")
