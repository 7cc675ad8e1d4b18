"""Reads a page that must be one file."""

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image


class SelfContained(HTMLParser):
    """The text and pictures of a page; fails on tags that do not match and on anything that is not in the file."""

    def __init__(self, page: str):
        super().__init__()
        self.text: list[str] = []
        self.pictures: list[Image.Image] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open
        assert "http" not in page

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in ("href", "srcset")
            for address in [value] if name == "src" else re.findall(r"url\((.*?)\)", value or ""):
                _, content = address.split(";base64,")
                assert address.startswith("data:image/")
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(content))))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text.append(data)
