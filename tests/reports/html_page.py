"""What the tests of the reports share: a reader of HTML pages, hostile text and small pictures."""

import html.parser
import io

import numpy as np
from PIL import Image

HOSTILE = "<script>alert(1)</script>\"'&</title><img src=http://evil.example/x>"
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Collects tags with attributes, texts by the tag that they stand in, and rows of tables; checks that tags nest."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.texts, self.rows = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [data for name, data in self.texts if name == tag]


def png(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(buffer, "png")
    return buffer.getvalue()
