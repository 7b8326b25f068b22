"""The door to the outside: what it refuses by sight, what at connect time, and what it takes from an answer."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tuneway.errors import InvalidRequest, OutboundFailed, OutboundRefused, StartError
from tuneway.outbound import KEPT_BYTES, Outbound

SECRET = "hunter2"
EVERYWHERE = ["*", "127.0.0.1"]


class FakeResolver(AbstractResolver):
    """Answers, for every name, the next of `rounds`; the last one stays."""

    def __init__(self, *rounds: list[str]) -> None:
        self._rounds = list(rounds)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        addresses = self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in addresses
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serving(
    answer: Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server on 127.0.0.1."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=f"{request.method} {request.path_qs} {(await request.read()).decode()}")


async def _received(outbound: Outbound, url: str, limit: int = 1000) -> bytes:
    return b"".join([piece async for piece in outbound.download(url, limit=limit)])


HOSTILE = [
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.0.01/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://168.63.129.16/",
    "https://100.64.0.1/",
    "https://0.0.0.0/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://10.0.0.1./",
    "https://１０.0.0.1/",
    "https://①⓪.0.0.1/",
    "https://%31%30.0.0.1/",
    "https://[::1]/",
    "https://[::1]@/",
    "https://[::]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[::10.0.0.1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b:1::808:808]/",
    "https://[2002:0a00:0001::]/",
    "https://[2001:0:0a00:1::]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fd00::1]/",
    "https://[v1.x]/",
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://@example.com/",
    "https://example.com\\@127.0.0.1/",
    "https://example.com:0/",
    "https://example.com:70000/",
    "https://example..com/",
    "https://exa mple.com/",
    "https://example.com/\r\nHost: x",
    "https://example.com/\x00",
    "https:///path",
    "https://",
    "https:example.com",
    "//example.com/",
    "example.com",
    "",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "http://8.8.8.8/",
    "https://" + "a" * 64 + ".com/",
    "https://example.com/" + "a" * 3000,
]


@pytest.mark.parametrize("url", HOSTILE)
def test_refused_by_sight(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Outbound(EVERYWHERE).check(url)
    assert refused.value.param == "url"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://EXAMPLE.COM:8443/hook?token=a%2Bb",
        "https://example.com./hook",
        "https://bücher.example/hook",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "https://[64:ff9b::8.8.8.8]/",
        "https://[::ffff:8.8.8.8]/",
        "http://127.0.0.1:9000/hook",
        "https://127.0.0.1/hook",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost/",
    ],
)
def test_fine_by_sight(url: str) -> None:
    Outbound(EVERYWHERE).check(url)


@pytest.mark.parametrize(
    ("allowed", "url", "fine"),
    [
        ([], "https://example.com", False),
        (["example.com"], "https://example.com", True),
        (["Example.COM."], "https://example.com", True),
        (["bücher.example"], "https://xn--bcher-kva.example", True),
        (["example.com"], "https://a.example.com", False),
        (["example.com"], "https://badexample.com", False),
        (["*.example.com"], "https://a.b.example.com", True),
        (["*.example.com"], "https://example.com", False),
        (["*.example.com"], "https://badexample.com", False),
        (["example.com"], "http://example.com", False),
        (["example.com"], "https://8.8.8.8", False),
        (["10.0.0.0/8"], "http://10.1.2.3", True),
        (["10.0.0.0/8"], "http://11.1.2.3", False),
        (["10.0.0.0/8"], "https://example.com", False),
        (["[::1]"], "http://[::1]:80", True),
        (["::1"], "http://[0:0::1]", True),
    ],
)
def test_the_list(allowed: list[str], url: str, fine: bool) -> None:
    outbound = Outbound(allowed)
    if fine:
        outbound.check(url)
    else:
        with pytest.raises(InvalidRequest, match="outbound_hosts"):
            outbound.check(url)


@pytest.mark.parametrize(
    "entry", ["https://example.com", "example.com:443", "10.0.0.1/8", "127.1", "a..b", "*.*", "*a"]
)
def test_an_entry_that_is_none(entry: str) -> None:
    with pytest.raises(StartError, match="outbound_hosts"):
        Outbound([entry])


async def _never_connects(address: str) -> None:
    outbound = Outbound(["*"], resolver=FakeResolver([address]))
    url = f"https://example.com/{SECRET}"
    for sending in (outbound.post(url, b"", {}), _received(outbound, url)):
        with pytest.raises(OutboundRefused, match="outbound_hosts") as refused:
            await sending
        assert SECRET not in refused.value.message


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00::1"]
)
def test_a_name_that_leads_inside_is_never_connected_to(address: str) -> None:
    asyncio.run(_never_connects(address))


def test_dns_is_asked_once_for_a_connection() -> None:
    """Rebinding: public when it is checked, private when it is connected to."""

    async def main() -> None:
        async with serving(_hello) as port:
            resolver = FakeResolver(["127.0.0.1"], ["127.0.0.2"])
            outbound = Outbound(["rebind.example", "127.0.0.1"], resolver=resolver)
            answer = await outbound.post(f"http://rebind.example:{port}/", b"1", {})
            assert (answer.status, resolver.asked) == (200, 1)
            with pytest.raises(OutboundRefused):
                await outbound.post(f"http://rebind.example:{port}/", b"2", {})

    asyncio.run(main())


def test_of_mixed_addresses_only_allowed_ones_are_connected_to() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def noting(request: web.BaseRequest) -> web.StreamResponse:
            seen.append(request.transport.get_extra_info("sockname")[0])  # type: ignore[union-attr]
            return web.Response()

        async with serving(noting) as port:
            mixed = FakeResolver(["10.0.0.1", "::1", "127.0.0.1"])
            outbound = Outbound(["mixed.example", "127.0.0.1"], resolver=mixed)
            assert (await outbound.post(f"http://mixed.example:{port}/", b"", {})).status == 200
        assert seen == ["127.0.0.1"]

    asyncio.run(main())


def test_a_public_address_is_not_called_in_clear() -> None:
    outbound = Outbound(EVERYWHERE, resolver=FakeResolver(["8.8.8.8"]))
    with pytest.raises(OutboundRefused, match="https"):
        asyncio.run(outbound.post("http://example.com/", b"", {}))


def test_a_url_is_sent_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signature covers its spelling, and a proxy of the environment never sees it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def main() -> None:
        async with serving(_hello) as port:
            url = f"http://127.0.0.1:{port}/a%2Fb%7E?sig=x%2By%3D%20z"
            answer = await Outbound(["127.0.0.1"]).post(url, b"body", {})
            assert answer.body == b"POST /a%2Fb%7E?sig=x%2By%3D%20z body"
            assert await _received(Outbound(["127.0.0.1"]), url) == b"GET /a%2Fb%7E?sig=x%2By%3D%20z "

    asyncio.run(main())


async def _redirect(request: web.BaseRequest) -> web.StreamResponse:
    assert request.path == f"/{SECRET}"
    return web.Response(status=302, headers={"location": "/elsewhere"})


def test_redirects_are_not_followed() -> None:
    async def main() -> None:
        async with serving(_redirect) as port:
            outbound = Outbound(["127.0.0.1"])
            url = f"http://127.0.0.1:{port}/{SECRET}"
            assert (await outbound.post(url, b"", {})).status == 302
            with pytest.raises(OutboundFailed, match="302"):
                await _received(outbound, url)

    asyncio.run(main())


async def _large(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(4):
        await response.write(b"x" * KEPT_BYTES)
    return response


async def _announced(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "1001"})
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def _compressed(request: web.BaseRequest) -> web.StreamResponse:
    response = web.Response(body=b"x" * 1000)
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def _cut(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "100"})
    await response.prepare(request)
    await response.write(b"x")
    assert request.transport is not None
    request.transport.close()
    return response


def test_an_answer_is_kept_up_to_its_limit() -> None:
    async def main() -> None:
        async with serving(_large) as port:
            answer = await Outbound(["127.0.0.1"]).post(f"http://127.0.0.1:{port}/", b"", {})
            assert len(answer.body) == KEPT_BYTES
            whole = await _received(Outbound(["127.0.0.1"]), f"http://127.0.0.1:{port}/", 4 * KEPT_BYTES)
            assert len(whole) == 4 * KEPT_BYTES

    asyncio.run(main())


async def _silent(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_large, "more than the 1000 bytes"),
        (_announced, "more than the 1000 bytes"),
        (_compressed, "compressed"),
        (_cut, "broke off"),
        (_silent, "in time"),
    ],
)
def test_downloads_that_fail(answer: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if answer is _silent:
        monkeypatch.setattr("tuneway.outbound.SILENCE_SECONDS", 0.1)

    async def main() -> None:
        async with serving(answer) as port:
            with pytest.raises(OutboundFailed, match=says) as failed:
                await _received(Outbound(["127.0.0.1"]), f"http://127.0.0.1:{port}/{SECRET}")
            assert SECRET not in failed.value.message

    asyncio.run(main())


def test_nobody_listens_and_no_tls_is_spoken() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(OutboundFailed, match="Could not connect to 127"):
            await Outbound(["127.0.0.1"]).post(f"http://127.0.0.1:{port}/{SECRET}", b"", {})
        async with serving(_hello) as port:
            with pytest.raises(OutboundFailed, match="127"):
                await Outbound(["127.0.0.1"]).post(f"https://127.0.0.1:{port}/{SECRET}", b"", {})

    asyncio.run(main())


def _self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "both.pem"
    private = serialization.PrivateFormat.PKCS8
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(_hello, _self_signed(tmp_path)) as port:
            with pytest.raises(OutboundFailed, match="certificate of 127"):
                await Outbound(["127.0.0.1"]).post(f"https://127.0.0.1:{port}/{SECRET}", b"", {})

    asyncio.run(main())
