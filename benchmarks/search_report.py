BARS = ""
import json


def heading(n):
    return f"# {n}"


def sides_table(rows):
    return json.dumps(rows, indent=1)
