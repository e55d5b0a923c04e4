"""Keys and tokens by their form, passwords by the name that they are given to. All are made up."""

from __future__ import annotations

import random
import string

import pytest

from llmfactory.data.clean.credentials import bits, credentials

ANY = string.ascii_letters + string.digits


def found(text: str) -> list[str]:
    return [text[slice(*span)] for span in credentials(text)]


def drawn(count: int, letters: str = ANY, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(letters, k=count))


PEM = "\n".join(
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        *(drawn(64, ANY + "+/", i) for i in range(5)),
        drawn(21) + "==",
        "-----END RSA PRIVATE KEY-----",
    ]
)
TOKENS = {
    "aws": "AKIA" + drawn(16, string.ascii_uppercase + "234567"),
    "github": "ghp_" + drawn(36),
    "github fine-grained": "github_pat_" + drawn(22) + "_" + drawn(59),
    "gitlab": "glpat-" + drawn(20),
    "slack": f"xoxb-{drawn(12, string.digits)}-{drawn(24)}",
    "openai": "sk-" + drawn(48),
    "openai project": "sk-proj-" + drawn(60, ANY + "_-") + "a1",
    "anthropic": "sk-ant-api03-" + drawn(80, ANY + "_") + "AA",
    "stripe": "sk_live_" + drawn(24),
    "google": "AIza" + drawn(35, ANY + "_"),
    "hugging face": "hf_" + drawn(34),
    "npm": "npm_" + drawn(36),
    "pypi": "pypi-AgE" + drawn(120, ANY + "_"),
    "sendgrid": f"SG.{drawn(22)}.{drawn(43)}",
    "oauth": "ya29." + drawn(60),
    "alibaba": "LTAI" + drawn(20),
    "tencent": "AKID" + drawn(32),
    "jwt": f"eyJ{drawn(33)}.eyJ{drawn(60)}.{drawn(43)}",
    "pem": PEM,
    "pem in code": PEM.replace("\n", "\\n"),
    "pem without an end": PEM.rpartition("\n")[0].rpartition("\n")[0],
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    ("before", "behind"), [("", ""), ("密钥", "。"), ('key="', '"'), ("(", ")"), ("\n", "\n"), ("Bearer ", ",")]
)
def test_tokens_of_services(name: str, before: str, behind: str) -> None:
    assert found(before + TOKENS[name] + behind) == [TOKENS[name]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('api_key = "a8Fk29xLq01mZ7pQ"', ["a8Fk29xLq01mZ7pQ"]),
        ("API_KEY=a8Fk29xLq01mZ7pQ\n", ["a8Fk29xLq01mZ7pQ"]),
        ('"secret": "a8Fk29xLq01mZ7pQ+/=="', ["a8Fk29xLq01mZ7pQ+/=="]),
        ("user=1&access_token=a8Fk29xLq01mZ7pQ&x=2", ["a8Fk29xLq01mZ7pQ"]),
        ("password: Tr0ub4dor-and-3-more!", ["Tr0ub4dor-and-3-more"]),
        ("密码：a8Fk29xLq01mZ7pQ，", ["a8Fk29xLq01mZ7pQ"]),
        ("密码: a8Fk29xLq01mZ7pQ", ["a8Fk29xLq01mZ7pQ"]),
        ("$config['db_password'] = 'a8Fk29xLq01mZ7pQ';", ["a8Fk29xLq01mZ7pQ"]),
        ("client_secret=>'a8Fk29xLq01mZ7pQ'", ["a8Fk29xLq01mZ7pQ"]),
        ("token = 550e8400-e29b-41d4-a716-446655440000", ["550e8400-e29b-41d4-a716-446655440000"]),
    ],
)
def test_what_a_name_gives_away(text: str, expected: list[str]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", 'name = "a8Fk29xLq01mZ7pQ"', 'api_key = "short1"', 'api_key = "your_api_key_goes_here_1"', "password = get_password_of_user1(x)",
        'secret = "xxxxxxxxxxxxxxxxxxxxxxx1"', 'password = "correct horse battery staple"', "token = tokenizer.encode_plus_more",
        'secret = "aaaaaaaaaaaaaaaaaaaaaaa1"', "key: 12345678901234567890", "the sk-circle-fade-dot-something class", "xoxb-short",
        "ghp_tooshort", "XAKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOPQRST", "task-" + drawn(40), "eyJhbGciOi.not.jwt", "=" * 300,
        "-----BEGIN PUBLIC KEY-----", "token: https://host.org/path1/of/a/file", "password=/etc/passwd/of/host/number1",
        "risk-averse-investors-in-2021-and-2022",
    ],
)  # fmt: skip
def test_what_is_no_secret(text: str) -> None:
    assert found(text) == []


def test_only_the_key_is_taken_from_prose_about_one() -> None:
    assert found("It begins with -----BEGIN PRIVATE KEY----- and so on.") == ["-----BEGIN PRIVATE KEY-----"]


def test_entropy() -> None:
    assert bits("aaaa") == 0.0
    assert bits("abab") == 1.0
    assert bits("abcdefgh") == 3.0
