"""The one door for connections to the outside: who may be called, decided on the address that is connected to.

A host is allowed when a name entry covers it and its address is a public one, or when its address is listed. The check
stands where the socket is made, so no second DNS answer, no redirect and no odd spelling of an address gets round it.
Messages name the host and never the rest of a URL: paths and queries hold secrets.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from tuneway.errors import InvalidRequest, OutboundFailed, OutboundRefused, StartError

Address = IPv4Address | IPv6Address
AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""What `getaddrinfo` answers: family, type, protocol, canonical name and socket address."""

SETTING = "outbound_hosts"
CONNECT_SECONDS = 10
POST_SECONDS = 30
SLOWEST = 4096
"""Bytes a second that a download must bring on average, after its first minute."""
SILENCE_SECONDS = 60
"""How long a download may say nothing."""
KEPT_BYTES = 64 * 1024
"""Of the answer to a POST; what follows is not read."""
MAX_URL = 2048
PIECE = 64 * 1024

# After https://www.iana.org/assignments/iana-ipv4-special-registry: a table of ours, as `is_global` differs between
# versions of Python. 168.63.129.16 looks public and is the host service of Azure's virtual machines.
_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
# Of IPv6 only global unicast, without what carries an IPv4 address inside (Teredo in 2001::/23, 6to4) or documents.
_UNICAST_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_NAT64 = IPv6Network("64:ff9b::/96")

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
# The resolver reads a name whose last label is a number as an IPv4 address: 2130706433, 0x7f.1, 127.1.
_NUMERIC = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by names in lower case; of `body` at most KEPT_BYTES."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Reply:
    """An answer whose body is still on its way; `headers` by names in lower case, each byte one character."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.raw_headers
        }
        self._content = response.content

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come."""
        return self._content.iter_any()


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was taken apart once; it is sent to exactly as it was checked."""

    url: URL
    host: str
    address: Address | None
    """Of a URL that names an address instead of a host."""


class Outbound:
    """`allowed` are the entries of the setting `outbound_hosts`; `resolver` None asks the system's.

    Raises StartError for an entry that is none.
    """

    def __init__(self, allowed: Sequence[str], *, resolver: AbstractResolver | None = None) -> None:
        self._names: list[str] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        self._resolver = resolver
        for entry in allowed:
            self._allow(entry)

    def check(self, url: str) -> None:
        """Raises InvalidRequest, for what can be said of a URL without asking DNS."""
        try:
            self._target(url)
        except OutboundRefused as error:
            raise InvalidRequest(error.message, param="url") from None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends `body` and returns whatever status is answered; a redirect is an answer like any other.

        Raises OutboundRefused, and OutboundFailed when no answer comes within POST_SECONDS.
        """
        target = self._target(url)
        limits = aiohttp.ClientTimeout(total=POST_SECONDS, connect=CONNECT_SECONDS)
        async with (
            self._session(target, limits) as session,
            session.post(target.url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            kept = bytearray()
            async for piece in response.content.iter_chunked(PIECE):
                kept += piece
                if len(kept) >= KEPT_BYTES:
                    break
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, bytes(kept[:KEPT_BYTES]), found)

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None = None,
        seconds: float | None = None,
        silence: float | None = None,
    ) -> AsyncIterator[Reply]:
        """One request to a provider; whatever status is answered is an answer, a redirect too.

        At most `seconds` for all of it, and `silence` seconds without a byte of the answer. Raises OutboundRefused, and
        OutboundFailed that says whether the request may have arrived; what `body` raises comes out as it is.
        """
        target = self._target(url)
        limits = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS, sock_read=silence)
        sending = None if body is None or isinstance(body, bytes) else _Sending(body)
        async with self._session(target, limits) as session:
            try:
                async with session.request(
                    method,
                    target.url,
                    data=body if sending is None else sending,
                    headers=headers,
                    allow_redirects=False,
                    skip_auto_headers=("content-type", "user-agent"),
                ) as response:
                    if response.headers.get("content-encoding", "identity").lower() != "identity":
                        raise OutboundFailed(f"{target.host} answered with a compressed body, which was not asked for.")
                    yield Reply(response)
            except (aiohttp.ClientError, OSError):
                # aiohttp reports a body that could not be read as a connection that broke.
                if sending is not None and sending.failure is not None:
                    raise sending.failure from None
                raise

    @asynccontextmanager
    async def session(self, url: str, limits: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientSession]:
        """A session for one request to `url`, for whoever needs the bytes of it as they are.

        Raises OutboundRefused, and OutboundFailed for what breaks inside.
        """
        async with self._session(self._target(url), limits) as session:
            yield session

    async def download(self, url: str, *, limit: int) -> AsyncGenerator[bytes]:
        """The bytes behind `url`, at most `limit` of them. Who stops early must close the iterator.

        Raises OutboundRefused, and OutboundFailed: any status but 200, more bytes than `limit`, a body that breaks off,
        SILENCE_SECONDS without a byte, or fewer than SLOWEST a second.
        """
        target = self._target(url)
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        async with (
            self._session(target, limits) as session,
            session.get(target.url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                followed = " Redirects are not followed." if 300 <= response.status < 400 else ""
                raise OutboundFailed(f"{target.host} answered with status {response.status}.{followed}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise OutboundFailed(f"{target.host} answered with a compressed body, which is not taken.")
            if (response.content_length or 0) > limit:
                raise _too_large(target.host, limit)
            left, began = limit, time.monotonic()
            async for piece in response.content.iter_chunked(PIECE):
                left -= len(piece)
                if time.monotonic() - began > SILENCE_SECONDS + (limit - left) / SLOWEST:
                    raise OutboundFailed(f"{target.host} sends too slowly: fewer than {SLOWEST} bytes a second.")
                if left < 0:
                    raise _too_large(target.host, limit)
                yield piece

    def _allow(self, entry: str) -> None:
        literal = entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry
        try:
            self._networks.append(ip_network(literal))
            return
        except ValueError as error:
            if "/" in entry or ":" in entry:
                raise StartError(
                    f"{SETTING}: {entry!r} is no network ({error}). Write names without scheme and port."
                ) from None
        name = entry.removeprefix("*.").lower().rstrip(".")
        if entry != "*":
            name = _ascii(name)
            if not _NAME.fullmatch(name) or _NUMERIC.fullmatch(name):
                raise StartError(f"{SETTING}: {entry!r} is no name of a host, address or network.")
        self._names.append(f"*.{name}" if entry.startswith("*.") else name)

    def _target(self, url: str) -> Target:
        """Raises OutboundRefused."""
        target = _take_apart(url)
        if target.address is not None and self._listed(target.address):
            return target
        if not self._named(target.host):
            raise _refusal(target.host)
        if target.url.scheme == "http" and (target.address is not None or not self._networks):
            raise OutboundRefused(_only_https(target.host))
        if target.address is not None and not _public(target.address):
            raise _refusal(target.host)
        return target

    def _named(self, host: str) -> bool:
        return any(host.endswith(name[1:]) if name.startswith("*.") else name in ("*", host) for name in self._names)

    def _listed(self, address: Address) -> bool:
        return any(_unmapped(address) in network for network in self._networks)

    def _at(self, target: Target, address: Address) -> OutboundRefused | None:
        """Why `target` may not be connected to at this address; None where it may."""
        if self._listed(address):
            return None
        if not _public(address):
            return _refusal(target.host)
        return OutboundRefused(_only_https(target.host)) if target.url.scheme == "http" else None

    @asynccontextmanager
    async def _session(self, target: Target, limits: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientSession]:
        """For one request: a connection that is kept would outlive what its address was checked for."""
        gate = _Gate(lambda address: self._at(target, address))
        connector = aiohttp.TCPConnector(
            resolver=self._resolver or aiohttp.ThreadedResolver(),
            use_dns_cache=False,
            force_close=True,
            socket_factory=gate.open,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"accept-encoding": "identity"},
            timeout=limits,
            trust_env=False,
        ) as session:
            # aiohttp sends a GET, PUT or DELETE again, unasked, when its connection breaks; there is no public way to
            # say no (3.14). Whoever calls decides what is sent twice.
            session._retry_connection = False
            with _translated(target.host, gate):
                yield session


class _Sending:
    """A request's body; it keeps what went wrong with it, which aiohttp does not tell."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = pieces
        self.failure: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                yield piece
        except Exception as failure:
            self.failure = failure
            raise


class _Gate:
    """Makes the sockets of one request, for the addresses only of which `refuse` says nothing."""

    def __init__(self, refuse: Callable[[Address], OutboundRefused | None]) -> None:
        self._refuse = refuse
        self._refused: OutboundRefused | None = None
        self._opened = False

    @property
    def refusal(self) -> OutboundRefused | None:
        """What was refused, unless another address of the host could be tried."""
        return None if self._opened else self._refused

    def open(self, info: AddressInfo) -> socket.socket:
        """Raises OSError, which makes the connection try the host's next address."""
        family, kind, protocol, _, where = info
        refused = self._refuse(ip_address(where[0]))
        if refused is not None:
            self._refused = refused
            raise OSError(refused.message)
        self._opened = True
        return socket.socket(family, kind, protocol)


@contextmanager
def _translated(host: str, gate: _Gate) -> Iterator[None]:
    """aiohttp's errors as ours, and `from None`: theirs hold the URL."""
    try:
        yield
    except aiohttp.ClientConnectorDNSError:
        raise OutboundFailed(f"There is no address of {host}.", sent=False) from None
    except aiohttp.ClientConnectorCertificateError:
        raise OutboundFailed(f"The certificate of {host} is not valid or not trusted here.", sent=False) from None
    except aiohttp.ClientConnectorError as error:
        if gate.refusal is not None:
            raise gate.refusal from None
        reason = error.os_error.strerror or type(error.os_error).__name__
        raise OutboundFailed(f"Could not connect to {host}: {reason}.", sent=False) from None
    except aiohttp.ConnectionTimeoutError:
        raise OutboundFailed(f"Could not connect to {host} in time.", sent=False, timed_out=True) from None
    except TimeoutError:
        raise OutboundFailed(f"{host} did not answer in time.", timed_out=True) from None
    except aiohttp.ClientPayloadError:
        raise OutboundFailed(f"{host} broke off its answer.") from None
    except (aiohttp.ClientError, OSError):
        raise OutboundFailed(f"{host} closed the connection or did not answer in HTTP.") from None


def _take_apart(url: str) -> Target:
    """Raises OutboundRefused for a URL that no careful client would send a request to."""
    if len(url) > MAX_URL or not url.isprintable() or " " in url or "\\" in url:
        raise OutboundRefused(f"The URL must have at most {MAX_URL} characters, without spaces and backslashes.")
    authority = url.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0]
    if "@" in authority:  # first: yarl cannot read all of these
        raise OutboundRefused("The URL must not hold a user name or a password before its host.")
    try:
        parsed = URL(url)
        host, port = (parsed.raw_host or "").lower(), parsed.port
    except ValueError:
        raise OutboundRefused("The URL cannot be read: write https://HOST/PATH.") from None
    if parsed.scheme not in ("http", "https"):
        raise OutboundRefused("The URL must begin with https://.")
    if not port:
        raise OutboundRefused("The URL names no port that could be connected to.")
    host = host[:-1] if host.endswith(".") else host
    address = _literal(host)
    if address is None and (authority.startswith("[") or _NUMERIC.fullmatch(host) or not _NAME.fullmatch(host)):
        raise OutboundRefused("The URL names no valid host; an IPv4 address is written as four decimal numbers.")
    # As it was written: another spelling of a signed query is another query.
    exact = URL(url, encoded=url.isascii()).with_host(host)
    return Target(exact, host, address)


def _literal(host: str) -> Address | None:
    """None for a name. An address with a zone (`fe80::1%eth0`) is neither."""
    try:
        return None if "%" in host else ip_address(host)
    except ValueError:
        return None


def _ascii(name: str) -> str:
    try:
        return URL.build(scheme="https", host=name).raw_host or ""
    except ValueError:
        return ""


def _unmapped(address: Address) -> Address:
    """`::ffff:a.b.c.d` is a spelling of a.b.c.d, and is connected to as such."""
    return getattr(address, "ipv4_mapped", None) or address


def _public(address: Address) -> bool:
    """Whether it is a unicast address of the public Internet, however it is written."""
    address = _unmapped(address)
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return _public(IPv4Address(address.packed[-4:]))
        return address in _UNICAST_6 and not any(address in network for network in _NOT_PUBLIC_6)
    return not any(address in network for network in _NOT_PUBLIC_4)


def _refusal(host: str) -> OutboundRefused:
    return OutboundRefused(
        f"This gateway may not connect to {host}. Its operator allows hosts by the setting `{SETTING}`; private "
        "addresses must be listed there as addresses or networks."
    )


def _too_large(host: str, limit: int) -> OutboundFailed:
    return OutboundFailed(f"{host} has more than the {limit} bytes that are taken.")


def _only_https(host: str) -> str:
    return f"{host} may be called by https:// only; http:// is for addresses that the setting `{SETTING}` lists."
