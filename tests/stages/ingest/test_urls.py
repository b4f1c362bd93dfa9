"""URLs in the dialects of crawls and redirects, read as browsers do, and refused alike by metadata and download."""
# ruff: noqa: RUF001 - letters that resemble others are what is tested

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest.config import IngestConfig
from stages.ingest.fetch import FetchError, fetch
from stages.ingest.urls import UrlError, parse_url, redirected, url_error


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://h", "h", 80, "/"),
        (" HTTPS://H/a?b=c#d ", "h", 443, "/a?b=c"),
        ("http://user:secret@h:8080/%41/b c", "h", 8080, "/%41/b%20c"),
        ("http://h/a\r\nX: y", "h", 80, "/aX:%20y"),
        ("ht\ttp://h/ta\tb", "h", 80, "/tab"),
        ("\x00\x1f http://h/ \x7f", "h", 80, "/%20%7F"),
        ("http:h/x", "h", 80, "/x"),
        ("http:/h/x", "h", 80, "/x"),
        ("http:////h/x", "h", 80, "/x"),
        ("http:\\\\h\\a\\b?c\\d", "h", 80, "/a/b?c\\d"),
        ("http://h?q", "h", 80, "/?q"),
        ("http://h#f?g", "h", 80, "/"),
        ("http://h:/x", "h", 80, "/x"),
        ("http://h:0080/x", "h", 80, "/x"),
        ("https://h:80/x", "h", 80, "/x"),
        ("http://h/a/../b/./%2e%2E/c", "h", 80, "/c"),
        ("http://h/100%.jpg?100%", "h", 80, "/100%.jpg?100%"),
        ("http://h/%e9%C3%A9é?é%C3%A9", "h", 80, "/%e9%C3%A9%C3%A9?%C3%A9%C3%A9"),
        ("http://h/a+b;c=[1]|~(2)", "h", 80, "/a+b;c=[1]|~(2)"),
        ('http://h/"<>`{}?"<>', "h", 80, "/%22%3C%3E%60%7B%7D?%22%3C%3E"),
        ("http://h/a?b&amp;c=d", "h", 80, "/a?b&amp;c=d"),
        ("http://h/?u=http://x/y?z", "h", 80, "/?u=http://x/y?z"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "/"),
        ("http://b%C3%BCcher.example/", "xn--bcher-kva.example", 80, "/"),
        ("http://BÜCHER.example/", "xn--bcher-kva.example", 80, "/"),
        ("http://faß.example/", "xn--fa-hia.example", 80, "/"),
        ("http://例え。テスト/", "xn--r8jz45g.xn--zckzah", 80, "/"),
        ("http://ｗｗｗ.ｅｘａｍｐｌｅ.com/", "www.example.com", 80, "/"),
        ("http://ex\u00adam\u200bple.com/", "example.com", 80, "/"),
        ("http://a_b.example.com./", "a_b.example.com.", 80, "/"),
        ("http://[2001:DB8:0::1]:81/", "2001:db8::1", 81, "/"),
        ("http://h/" + "a" * 5000, "h", 80, "/" + "a" * 5000),
    ],
)
def test_urls_are_read_as_browsers_do(url: str, host: str, port: int, target: str) -> None:
    address = parse_url(url)
    assert (address.host, address.port, address.target) == (host, port, target)
    assert address.is_tls == url.strip().lower().startswith("https")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7F.1", "0177.0.0.1", "017700000001", "127.0.0.1.",
     "１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "%31%32%37.0.0.1", "%30x7f.1", "user@127.1", "a:b@0x7f.1"],
)  # fmt: skip
def test_every_spelling_of_an_address_is_the_address(host: str) -> None:
    assert parse_url(f"http://{host}/").host == "127.0.0.1"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("//h/x.jpg", "relative"),
        ("h/x.jpg", "relative"),
        ("/x.jpg", "relative"),
        ("www.example.com/x.jpg", "relative"),
        ("", "empty"),
        ("http://", "host"),
        ("http:///", "host"),
        ("http://user@/x", "host"),
        ("file:///etc/passwd", "scheme is 'file'"),
        ("ftp://h/x", "scheme is 'ftp'"),
        ("data:image/png;base64,AA", "scheme is 'data'"),
        ("javascript:alert(1)", "scheme is 'javascript'"),
        ("<a href=http://h/x>", "relative"),
        ("http://h:0/", "port is 0"),
        ("http://h:65536/", "port"),
        ("http://h:80:80/", "port"),
        ("http://h:a/", "port"),
        ("http://1.2.3.4.5/", "IPv4"),
        ("http://256.1.1.1/", "IPv4"),
        ("http://0x100000000/", "IPv4"),
        ("http://[::1/", "IPv6"),
        ("http://[fe80::1%25eth0]/", "IPv6"),
        ("http://a b/", "domain"),
        ("http://h%zz/", "domain"),
        ("http://h\x00/", "domain"),
        ("http://xn--a/", "domain"),
        ("http://a..b/", "empty or too long"),
        ("http://./", "empty or too long"),
        (f"http://{'a' * 64}.example/", "empty or too long"),
        (f"http://{'a.' * 130}example/", "empty or too long"),
        ("http://h/caf\ufffd.jpg", "U+FFFD"),
    ],
)
def test_what_no_browser_opens_is_refused_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(UrlError, match=re.escape(reason)):
        parse_url(url)
    assert url_error(url)
    with pytest.raises(FetchError) as caught:
        fetch(url, IngestConfig())
    assert caught.value.reason == "bad_url"


@given(st.text() | st.text(max_size=20).map("http://{}".format))
def test_every_text_has_an_address_that_can_be_sent_or_a_reason(url: str) -> None:
    if url_error(url):
        with pytest.raises(UrlError):
            parse_url(url)
        return
    address = parse_url(url)
    assert address.host.isascii()
    assert address.target.startswith("/")
    assert all(32 < ord(character) < 127 for character in address.host + address.target)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://other/x", "http://other/x"),
        ("//other/x", "https://other/x"),
        ("\\\\other\\x", "https://other/x"),
        ("///other/x", "https://other/x"),
        ("https:////other/x", "https://other/x"),
        ("/x", "https://h:81/x"),
        ("\\x\\y?a\\b", "https://h:81/x/y?a\\b"),
        ("x", "https://h:81/a/x"),
        ("../x/./y", "https://h:81/x/y"),
        ("?x", "https://h:81/a/b?x"),
        ("https:x", "https://h:81/a/x"),
        ("https:/x", "https://h:81/x"),
        ("http:/other/x", "http://other/x"),
        ("  /a b\t.jpg ", "https://h:81/a%20b.jpg"),
        ("/a b?c d", "https://h:81/a%20b?c%20d"),
        ("/é", "https://h:81/%E9"),
        ("/é".encode().decode("latin-1"), "https://h:81/%C3%A9"),
        ("//bücher.example/".encode().decode("latin-1"), "https://xn--bcher-kva.example/"),
        ("/x;y?a=http://z", "https://h:81/x;y?a=http://z"),
        ("//0x7f.1/x", "https://127.0.0.1/x"),
        ("./a:b", "https://h:81/a/a:b"),
    ],
)
def test_redirects_in_the_same_dialect(location: str, expected: str) -> None:
    assert parse_url(redirected("https://h:81\\a/b?c", location)) == parse_url(expected)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "a:b", "http://", "//", "http://a..b/", "//h:0"])
def test_redirects_to_nowhere_are_refused(location: str) -> None:
    with pytest.raises(UrlError):
        parse_url(redirected("https://h/", location))
