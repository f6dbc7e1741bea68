"""The operator's side: who may do what, on every route; what pausing, closing, revoking and pinning do."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from covey_server import access
from covey_server.admin import ALL_ROUTES
from covey_server.app import ROUTES
from covey_server.limits import Buckets, Rate, network
from covey_server.policy import ANYONE, DEVICE, KEY, check_routes
from covey_shared.errors import UsageError
from tests.helpers_server import Answer, Served, call, enroll, run_to_end, send, served, status_of, write_task

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(write_task(tmp_path_factory.mktemp("admin"))) as found:
        yield found


def token_of(server: Served, role: str, ttl_s: float = 600.0) -> str:
    label = f"{role}-{time.monotonic_ns()}"
    return server.aggregator.run.db.run(access.add_token, role, label, ttl_s, time.time())


def ask(server: Served, method: str, path: str, body: Any = None, token: str = "", **headers: str) -> Answer:
    """A question on the operator's side."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    return send(server.admin, method, path, data, {**(JSON if data else {}), **headers})


def code(answer: Answer) -> str:
    found: str = json.loads(answer.body)["code"]
    return found


@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_the_role_matrix(server: Served, route: Any) -> None:
    """Each role on each route: allowed means anything but 401 and 403."""
    path = route.path.replace("{name}", "nobody").replace("{id}", "00000000")
    for role in (*access.ROLES, "expired", "invented", ""):
        server.door.buckets = Buckets()
        token = {"invented": "covey_operator_invented", "": ""}.get(role)
        if token is None:
            token = token_of(server, "operator" if role == "expired" else role, -1.0 if role == "expired" else 600.0)
        answer = ask(server, route.method, path, {} if route.policy.max_body else None, token)
        who = route.policy.who
        if who in (ANYONE, role) or (who == access.VIEWER and role in (*access.ROLES, "")):
            assert answer.status not in (401, 403), role
        else:
            assert (answer.status, code(answer)) in [(401, "bad_token"), (403, "wrong_role")], role
    server.aggregator.control = server.aggregator.control._replace(paused=False)


def test_a_look_without_a_token_must_mean_this_machine(server: Served) -> None:
    """A page of a stranger's site, open in a browser here, reaches loopback under its own name (DNS rebinding)."""
    for host, status in (("localhost", 200), ("127.0.0.1:1", 200), ("[::1]", 200), ("evil.example", 401), ("", 401)):
        assert ask(server, "GET", "/v1/status", Host=host).status == status, host
    assert ask(server, "GET", "/v1/status", token=token_of(server, "viewer"), Host="covey.example").status == 200


def test_the_page_cannot_be_framed_or_run_scripts(server: Served) -> None:
    answer = ask(server, "GET", "/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"<script" not in answer.body


def test_devices_have_no_door_to_the_operators_side_nor_strangers(server: Served) -> None:
    for path in ("/", "/v1/status", "/v1/devices", "/v1/codes", "/metrics"):
        assert send(server.url, "GET", path).status == 404
    assert ask(server, "GET", "/v1/task").status == 404


def test_codes_and_devices(server: Served) -> None:
    token = token_of(server, "operator")
    made = json.loads(ask(server, "POST", "/v1/codes", {"count": 2, "ttl_s": 60}, token).body)["codes"]
    server.door.is_open = False
    assert enroll(server.url, "by-code", made[0]).status == 200
    server.door.is_open = True
    listed = json.loads(ask(server, "GET", "/v1/codes", token=token).body)["codes"]
    assert [c["used_by"] for c in listed if c["used_by"]] == ["by-code"]
    assert made[0] not in str(listed)
    unused = next(c["id"] for c in listed if not c["used_by"])
    assert ask(server, "DELETE", f"/v1/codes/{unused}", token=token).status == 200
    assert ask(server, "DELETE", f"/v1/codes/{unused}", token=token).status == 404
    assert ask(server, "POST", "/v1/devices/by-code/revoke", token=token).status == 200
    assert call(server.url, "GET", "/v1/task", who="by-code").status == 403
    devices = json.loads(ask(server, "GET", "/v1/devices").body)["devices"]
    assert next(d for d in devices if d["name"] == "by-code")["revoked"] > 0


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"count": "1"}', b'{"count": true}', b'{"cuont": 1}', b'{"count": 0}',
             b'{"count": 9999}', b'{"ttl_s": 1e12}', b'{"name": "../x"}', b"[" * 1000, b"x" * 2000, b'{"ttl_s": NaN}'],
)  # fmt: skip
def test_what_is_no_question_for_codes(server: Served, body: bytes) -> None:
    server.door.buckets = Buckets()
    token = token_of(server, "operator")
    before = len(server.aggregator.run.db.run(access.codes))
    answer = send(server.admin, "POST", "/v1/codes", body, {**JSON, "Authorization": f"Bearer {token}"})
    assert answer.status in (400, 413), answer
    assert len(server.aggregator.run.db.run(access.codes)) == before
    assert json.loads(answer.body).keys() == {"code", "message", "retry_after_s"}


def test_paused_nobody_gets_work_and_what_is_under_way_counts(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with served(task) as server:
        token = token_of(server, "operator")
        a, b = server.device("a"), server.device("b")
        a.fetch(0, server.start)
        body = a.update(a.task(), a.check_in())
        assert ask(server, "POST", "/v1/pause", token=token).status == 200
        waiting = b.check_in()
        assert (waiting.action, waiting.retry_after_s) == ("wait", 10.0)
        assert a.upload(1, body).status == 200
    with served(task) as server:
        assert status_of(server.url)["paused"]
        b = server.device("b")
        assert b.check_in().action == "wait", "also after a restart"
        assert ask(server, "POST", "/v1/resume", token=token).status == 200
        assert b.check_in().action == "train"


def test_closing_a_round_is_its_deadline(tmp_path: Path) -> None:
    with served(write_task(tmp_path, "minimum = 1\n", target=3)) as server:
        token = token_of(server, "operator")
        assert server.device("a").take_part(server.start) == "train"
        assert ask(server, "POST", "/v1/close", token=token).status == 200
        server.wait_for_version(1)
        assert server.aggregator.versions[1].updates == 1


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)  # the link follows the folder


def test_latest_can_be_taken_back_and_stays(tmp_path: Path) -> None:
    task, adapters = write_task(tmp_path, rounds=3), tmp_path / "adapters"
    with served(task, publish=adapters) as server:
        token = token_of(server, "publisher")
        devices = [server.device("a"), server.device("b")]
        for device in devices:
            device.take_part(server.start)
        server.wait_for_version(1)
        wait_for(adapters / "v1")
        assert ask(server, "POST", "/v1/latest", {"version": 7}, token).status == 404
        assert ask(server, "POST", "/v1/latest", {"version": 1}, token).status == 200
        run_to_end(devices, server.start)
        wait_for(adapters / "v3")
        assert (adapters / "latest").readlink() == Path("v1")
        assert ask(server, "POST", "/v1/latest", {"version": -1}, token).status == 200
        assert (adapters / "latest").readlink() == Path("v3")


# Policies and limits.


async def nothing(request: web.Request) -> web.Response:
    return web.Response()


def test_a_route_without_a_policy_stops_the_start() -> None:
    app = web.Application()
    app.router.add_get("/v1/forgotten", nothing, allow_head=False)
    with pytest.raises(UsageError, match="the route GET /v1/forgotten has no policy"):
        check_routes(app, ROUTES)


@pytest.mark.parametrize(
    "change", [{"who": ""}, {"who": "everybody"}, {"max_body": None}, {"max_body": -2}, {"rate": None},
               {"rate": Rate(0, 1)}, {"repeat": ""}, {"media": ""}],
)  # fmt: skip
def test_a_policy_must_be_whole(change: dict[str, Any]) -> None:
    good = ROUTES[0]
    app = web.Application()
    app.router.add_route(good.method, good.path, nothing)
    assert check_routes(app, [good])
    with pytest.raises(UsageError, match="has no policy"):
        check_routes(app, [good._replace(policy=good.policy._replace(**change))])


def test_only_two_things_and_health_are_for_strangers() -> None:
    assert {(r.method, r.path) for r in ROUTES if r.policy.who != DEVICE} == {
        ("GET", "/v1/hello"), ("POST", "/v1/enroll"), ("GET", "/healthz"), ("GET", "/readyz"),
    }  # fmt: skip
    assert [r.path for r in ROUTES if r.policy.who == KEY] == ["/v1/enroll"]


def test_buckets_fill_up_again_and_have_an_end() -> None:
    buckets, rate = Buckets(most=3), Rate(2.0, 2)
    assert [buckets.take("a", "x", rate, 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert buckets.take("a", "x", rate, 0.5) == 0
    assert buckets.take("a", "y", rate, 0.5) == 0, "another kind of route"
    for i in range(100):
        buckets.take(f"b{i}", "x", rate, 0.5)
    assert len(buckets._left) == 3
    assert buckets.take("a", "x", rate, 1e9) == 0


def test_who_is_charged() -> None:
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2:ffff::") != network("2001:db8:1:3::")
    assert network("::ffff:192.0.2.1") == "192.0.2.1"
    assert network("fe80::1%eth0") == "fe80::"
