"""Reads a report as a browser would, and says what it holds."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

LOADING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}
VOID = {"meta", "br"}


class _Reader(HTMLParser):
    """Notes text by element, what is loaded, and elements that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.loads, self.tags, self.faults = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in LOADING]
        self.faults += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        if data.strip() and self.open[-1:] != ["style"]:
            self.texts.append(data)


def checked(text):
    """Return a page as an XML tree, after seeing that it is whole, safe and alone."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert (reader.open, reader.faults) == ([], [])
    assert not reader.tags & {"script", "link", "iframe", "object", "img", "base", "form"}
    assert [each for each in reader.loads if not each.startswith("#")] == []
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url\(|@import|https?:", style)
    assert text.startswith("<!DOCTYPE html>\n<html")
    tree = ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
    anchors = {each.get("id") for each in tree.iter() if each.get("id")}
    assert {each.removeprefix("#") for each in reader.loads} <= anchors
    return tree


def words(tree):
    """Return everything that can be read, blanks joined, without styles."""
    parts = []
    for part in (tree.find("head/title"), tree.find("body")):
        parts += [] if part is None else part.itertext()
    return " ".join(" ".join(parts).split())


def tables(tree):
    """Return every table as rows of text, by its name; the heading is the first row."""
    found = {}
    for table in tree.iter("table"):
        rows = [
            [" ".join("".join(cell.itertext()).split()) for cell in row] for row in table.iter("tr")
        ]
        found[table.get("aria-label")] = rows
    return found
