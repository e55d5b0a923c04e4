"""Addresses in running text, and what looks like one."""

from __future__ import annotations

import random
import string

import pytest

from llmfactory.data.clean.addresses import emails, ips, logins, macs
from llmfactory.data.clean.spans import Finder


def found(finder: Finder, text: str) -> list[str]:
    return [text[slice(*span)] for span in finder(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail a@b.co.", ["a@b.co"]),
        ("john.doe+tag@mail.corp.co.uk, x", ["john.doe+tag@mail.corp.co.uk"]),
        ("请联系张三zhang_san@qq.com谢谢", ["zhang_san@qq.com"]),
        ("<jane@host.org>", ["jane@host.org"]),
        ("mailto:jane@host.org?subject=x", ["jane@host.org"]),
        ("_jane@host.org_ and 'o'neil@host.org'", ["_jane@host.org", "o'neil@host.org"]),
        ("josé@correo.es", ["josé@correo.es"]),
        ("иван@почта.ru ivan@mail.ru", ["ivan@mail.ru"]),
        ("a@b.com/c@d.org", ["a@b.com", "c@d.org"]),
        ("name (at) host (dot) com or name[at]host.com", ["name (at) host (dot) com", "name[at]host.com"]),
        ("全角zhang＠qq.com", ["zhang＠qq.com"]),
        ("x" * 64 + "@host.org", ["x" * 64 + "@host.org"]),
        ("12345@qq.com", ["12345@qq.com"]),
    ],
)
def test_emails(text: str, expected: list[str]) -> None:
    assert found(emails, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "a@", "@b.com", "user@localhost", "react@16.8.0", "x @ y.T", "a@b.c", "@property\ndef f", "logo@2x.png", "a@b.c0m",
        "me@example.com", "you@mail.example.org", "me@x.example", "git@github.com:who/what.git", "https://user@host.com/", "a.@b.com",
        "x" * 65 + "@host.org", "look (at) this", "a@@b.com",
    ],
)  # fmt: skip
def test_what_is_no_email(text: str) -> None:
    assert found(emails, text) == []


def test_generated_emails() -> None:
    draw = random.Random(0)
    letters = string.ascii_letters + string.digits
    for _ in range(300):
        local = ".".join("".join(draw.choices(letters + "_", k=draw.randrange(1, 9))) for _ in range(draw.randrange(1, 4)))
        domain = "".join(draw.choices(letters, k=draw.randrange(1, 9))) + draw.choice([".com", ".org.cn", ".de", ".museum"])
        before, behind = draw.choice([("", ""), ("邮箱", "，"), ("(", ")"), (" ", " "), ("：", "。"), ("\n", "\n")])
        assert found(emails, f"{before}{local}@{domain}{behind}") == [f"{local}@{domain}"]


def test_logins() -> None:
    assert found(logins, "ftp://joe:s3cr3t@host/ 见http://张:密码@主机/") == ["joe:s3cr3t", "张:密码"]
    for text in ("https://host:8080/a@b", "https://user@host/", "http://host/path:x@y", "://:@", "mailto:a@b.com", "://a b:c@d"):
        assert found(logins, text) == [], text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 93.184.216.34 to", ["93.184.216.34"]),
        ("地址93.184.216.34，端口", ["93.184.216.34"]),
        ("93.184.216.34:80, 8.8.8.8/32.", ["93.184.216.34"]),  # eights could be a version's
        ("DNS: 8.8.8.8", ["8.8.8.8"]),
        ("http://8.8.8.8/ping", ["8.8.8.8"]),
        ("2606:4700:4700::1111 [2001:67c:2564:a119::77]:443", ["2606:4700:4700::1111", "2001:67c:2564:a119::77"]),
        ("2a00:1450:4001:81b:0:0:0:200e.", ["2a00:1450:4001:81b:0:0:0:200e"]),
        ("网2a00::1:2，", ["2a00::1:2"]),
        ("ends 2a00:1450::", ["2a00:1450::"]),
    ],
)
def test_ips(text: str, expected: list[str]) -> None:
    assert found(ips(private=False), text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "version 93.184.216.34", "v93.184.216.34", "1.2.3.4", "Firefox/93.18.21.34", "1.2.3.4.5", "256.1.1.1", "93.184.216.034",
        "93.184.216", "x93.184.216.34", "93.184.216.34x", "-93.184.216.34", "section 32.21.14.44", "版本93.184.216.34", "127.0.0.1",
        "0.0.0.0", "192.0.2.1", "203.0.113.9", "2001:db8::1", "::1", "::", "std::vector", "a::b", "x[::2]", "dead::beef", "12:34:56",
        "1:2:3:4:5:6:7:8:9", "00:11:22:33:44:55:66:77", "224.0.0.1", "93.184.216.34.1", "ff02::1:2", "1::2", "2000::/3",
    ],
)  # fmt: skip
def test_what_is_no_ip(text: str) -> None:
    assert found(ips(private=False), text) == []


def test_local_networks_by_option() -> None:
    text = "10.1.200.3, 192.168.0.77 and fe80::5054:ff:fe9"
    assert found(ips(private=False), text) == []
    assert found(ips(private=True), text) == ["10.1.200.3", "192.168.0.77", "fe80::5054:ff:fe9"]
    for mask in ("255.255.255.0", "127.0.0.1", "0.0.0.0", "198.51.100.7"):
        assert found(ips(private=True), f"ip {mask}") == []


def test_macs() -> None:
    assert found(macs, "eth0 52:54:00:9d:0e:67, 52-54-00-9D-0E-67") == ["52:54:00:9d:0e:67", "52-54-00-9D-0E-67"]
    for text in (
        "52:54:00:9d:0e",
        "52:54-00:9d:0e:67",
        "52:54:00:9d:0e:67:11",
        "x52:54:00:9d:0e:67",
        "00-00-5E-00-53-01",
        "-" * 20,
    ):
        assert found(macs, text) == [], text
