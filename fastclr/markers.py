"""Fills in the generated parts of a Markdown page, each between two comments of one name."""


def fill(text: str, tables: dict[str, str]) -> str:
    """Replace the text between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, also_found, after = rest.partition(end)
        if not (found and also_found):
            raise ValueError(f"the page must have one pair of markers <!-- {name} --> … <!-- /{name} -->")
        text = f"{before}{start}{table}\n{end}{after}"
    return text
