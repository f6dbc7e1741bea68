"""What operators' machines see: health, readiness, metrics, logs, and how a server stops."""

import json
import re
import signal
import socket
import time
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.openmetrics import parser

from covey_shared.bundle import Bundle
from covey_shared.messages import Refusal
from tests.helpers_server import ADMIN, Device, ServerProcess, call, send, served, signed_head, write_task

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def families(text: str) -> list[Metric]:
    """What Prometheus' own strict reader makes of an exposition."""
    return list(parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def samples(url: str) -> dict[str, float]:
    """All samples of the exposition."""
    answer = send(ADMIN[url], "GET", "/metrics", headers=OPEN_METRICS)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    return {
        s.name + "".join(f"[{value}]" for _, value in sorted(s.labels.items()) if value != "+Inf"): s.value
        for family in families(answer.body.decode())
        for s in family.samples
    }


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        devices = [server.device(name) for name in ("a", "b")]
        sent = 0
        for device in devices:
            device.take_part(server.start)
            sent += len(device.bodies[1])
        server.wait_for_version(1)
        devices[0].upload(1, devices[0].bodies[1])
        assert call(server.url, "GET", "/v1/nothing").status == 404
        found = samples(server.url)
        assert found["covey_updates_acknowledged_total[accepted]"] == 2
        assert found["covey_updates_acknowledged_total[duplicate]"] == 1
        assert found["covey_refusals_total[not_found]"] == 1
        assert found["covey_body_bytes_total[up][update]"] == sent + len(devices[0].bodies[1])
        assert found["covey_update_staleness_versions_count"] == 2
        assert found["covey_fold_seconds_count"] == found["covey_round_seconds_count"] == 1
        assert found["covey_version"] == 1
        assert found["covey_round_updates"] == 0
        assert found["covey_commit_seconds_count"] > 3
        assert found["covey_request_seconds_count[update]"] == 3
        assert found["covey_loop_lag_seconds_count"] >= 0
        text = send(server.admin, "GET", "/metrics").body.decode()
        assert "# TYPE covey_version gauge" in text
        assert not re.search(r'"(a|b)"', text), "no device is named"


def test_names_follow_the_conventions(tmp_path: Path) -> None:
    """Base units, `_total` for counters alone, no names of devices among the labels."""
    with served(write_task(tmp_path)) as server:
        found = families(send(server.admin, "GET", "/metrics", headers=OPEN_METRICS).body.decode())
    ours = [family for family in found if family.name.startswith("covey_")]
    assert len(ours) >= 12
    for family in ours:
        assert family.documentation
        assert re.fullmatch("[a-z_]+", family.name)
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_versions", "_pieces"))


def test_health_and_readiness(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        assert send(server.url, "GET", "/healthz").body == b"alive\n"
        assert (send(server.url, "GET", "/readyz").status, send(server.url, "GET", "/readyz").body) == (200, b"ready\n")


def upload_in_flight(url: str, folder: Path) -> tuple[socket.socket, bytes]:
    """An upload of which some bytes have been sent, and the rest."""
    device = Device(url, "a")
    device.fetch(0, Bundle.open(folder / "bundle").start(7))
    body = device.update(device.task(), device.check_in())
    slow = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    slow.sendall(signed_head(url, "PUT", "/v1/updates/1/a", body) + body[:20])
    time.sleep(0.1)
    return slow, body[20:]


def test_while_it_stops_it_says_so_and_finishes_what_it_has(tmp_path: Path) -> None:
    with ServerProcess(write_task(tmp_path)) as server:
        url = server.url()
        slow, rest = upload_in_flight(url, tmp_path)
        with slow:
            server.child.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert (send(url, "GET", "/readyz").status, send(url, "GET", "/readyz").body) == (503, b"stopping\n")
            assert send(url, "GET", "/healthz").status == 200
            refused = send(url, "GET", "/v1/task")
            assert (refused.status, Refusal.from_bytes(refused.body).code) == (503, "stopping")
            assert "Retry-After" in refused.headers
            slow.sendall(rest)
            assert slow.recv(4096).startswith(b"HTTP/1.1 200"), "the upload was taken"
        assert server.result()[0] == 0


def test_a_second_signal_ends_it_at_once_and_loses_nothing(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with ServerProcess(task) as server:
        slow, _ = upload_in_flight(server.url(), tmp_path)
        with slow:
            for _ in range(2):
                server.child.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert server.child.wait(5) == -signal.SIGTERM
    with ServerProcess(task) as server:
        assert send(server.url(), "GET", "/readyz").status == 200


def test_logs_as_json_lines(tmp_path: Path) -> None:
    with ServerProcess(write_task(tmp_path), "--log-json") as server:
        url = server.url()
        answer = call(url, "GET", "/v1/task", headers={"Covey-Client": "canary-device", "Cookie": "canary"})
        call(url, "PUT", "/v1/updates/1/canary-device", b"\xc1canary", {"Content-Type": "application/msgpack"})
        code, out, errors = server.stop()
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    task, update = ([line for line in lines if line.get("route") == route][-1] for route in ("task", "update"))
    assert task["request"] == answer.headers["Covey-Request"]
    assert (task["status"], update["status"]) == (200, 400)
    assert any("task test, 3 rounds" in line["message"] for line in lines), "what is said to people is there too"
    assert "canary" not in errors


def test_logs_for_people_say_little_and_name_the_request(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        device = server.device("a")
        device.take_part(server.start)
        other = device.update(device.task(), device.check_in(), round=1, loss_after=9.0)
        answer = device.upload(1, other)
        assert Refusal.from_bytes(answer.body).code == "conflict"
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["Covey-Request"])
