"""The templates of the pages that this package writes: self-contained, with one style."""

import pathlib

import jinja2

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters["thousands"] = "{:,.0f}".format
