"""The protocol over a real socket: honest devices, retries, duplicates, conflicts, restarts in between."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from covey_shared.bundle_signature import check_all, sign_folder
from covey_shared.codec import codec_from_spec
from covey_shared.keys import generate
from covey_shared.messages import Adapter, Assignment, Receipt, Refusal, StageSpec, Task
from tests.helpers_server import LAYOUT, MSGPACK, Device, call, run_to_end, send, served, status_of, write_task


def code_of(body: bytes) -> str:
    return Refusal.from_bytes(body).code


def test_a_task_from_beginning_to_end(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        devices = [server.device(name) for name in ("a", "b")]
        task = devices[0].task()
        assert (task.rounds, task.round, task.version, task.state) == (3, 1, 0, "running")
        run_to_end(devices, server.start)
        task = devices[0].task()
        assert (task.round, task.version, task.state) == (3, 3, "done")
        for device in devices:
            device.fetch(3, server.start)
            assert device.evaluate(loss=1.5 if device.name == "a" else 3.0, tokens=10 if device.name == "a" else 20)
        assert devices[0].view.tobytes() == devices[1].view.tobytes() == server.aggregator.server.view.tobytes()
        status = status_of(server.url)
        assert status["history"][3]["loss"] == pytest.approx((1.5 * 10 + 3.0 * 20) / 30), "every token counts once"
        assert [c["updates"] for c in status["clients"]] == [3, 3]
        assert len(server.lines) == 3


def test_version_0_is_the_seeded_start_and_is_never_sent(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        message = server.device("a").fetch(0, server.start)
        assert (message.base, message.steps) == (0, ())


def test_a_device_that_missed_rounds_gets_the_steps_or_the_whole(tmp_path: Path) -> None:
    with served(write_task(tmp_path, target=1)) as server:
        run_to_end([server.device("a")], server.start)
        late = server.device("late")
        message = late.fetch(3, server.start)
        assert (message.base, len(message.steps)) == (-1, 1), "three small steps are longer than this tiny whole"
        assert late.view.tobytes() == server.aggregator.server.view.tobytes()
        behind = server.device("behind")
        behind.fetch(1, server.start)
        assert behind.fetch(2, server.start).base == 1
        assert behind.fetch(2, server.start).steps == ()
        other = server.device("other")
        assert other.fetch(2, server.start).base == 0, "an older version comes as steps from the start"


def test_versions_coded_from_the_start_are_one_step_whatever_a_device_holds(tmp_path: Path) -> None:
    text = '[download]\nsince = "start"\ncodec = "levels"\nerror = 0.5\n'
    with served(write_task(tmp_path, text, target=1)) as server:
        run_to_end([server.device("a")], server.start)
        for held in (None, 1, 2):
            late = server.device(f"late{held}")
            if held is not None:
                late.fetch(held, server.start)
            message = late.fetch(3, server.start)
            assert (message.base, [s.version for s in message.steps]) == (0, [3])
            assert late.view.tobytes() == server.aggregator.server.view.tobytes()


def test_flasc_paper_sends_masked_weights_from_zero(tmp_path: Path) -> None:
    text = '[strategy]\nname = "flasc"\nmode = "paper"\ndensity_up = 0.25\ndensity_down = 0.5\n'
    with served(write_task(tmp_path, text)) as server:
        device = server.device("a")
        message = device.fetch(0, server.start)
        assert (message.base, len(message.steps)) == (-1, 1)
        kept = np.flatnonzero(device.view)
        assert len(kept) == LAYOUT.size // 2
        assert device.view[kept].tobytes() == server.start[kept].tobytes()
        run_to_end([device, server.device("b")], server.start)
        assert np.count_nonzero(server.aggregator.server.view) == LAYOUT.size // 2
        assert np.count_nonzero(server.aggregator.server.w) > LAYOUT.size // 2


def test_check_in_twice_is_the_same_assignment(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        one, two = server.device("a").check_in(), server.device("a").check_in()
        assert (one.action, one.round, one.attempt, one.version) == (two.action, two.round, two.attempt, two.version)
        assert two.deadline_s <= one.deadline_s


def test_an_upload_is_acknowledged_once_and_repeated_for_ever(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        a, b = server.device("a"), server.device("b")
        body = a.update(a.task(), a.check_in()) if a.fetch(0, server.start) else b""
        digest = hashlib.sha256(body).hexdigest()
        answers = [a.upload(1, body) for _ in range(3)]
        receipts = [Receipt.from_bytes(answer.body) for answer in answers]
        assert [(r.status, r.digest, r.payload_bytes) for r in receipts] == [
            ("accepted", digest, len(body)), ("duplicate", digest, len(body)), ("duplicate", digest, len(body)),
        ]  # fmt: skip
        assert status_of(server.url)["round"]["accepted"] == ["a"]
        b.take_part(server.start)
        server.wait_for_version(1)
        assert Receipt.from_bytes(a.upload(1, body).body).status == "duplicate", "also after the round has closed"


def test_another_body_for_the_same_round_is_a_conflict_that_names_both(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        a = server.device("a")
        a.fetch(0, server.start)
        task, assignment = a.task(), a.check_in()
        first, second = a.update(task, assignment), a.update(task, assignment, examples=10)
        assert a.upload(1, first).status == 200
        answer = a.upload(1, second)
        refusal = Refusal.from_bytes(answer.body)
        assert (answer.status, refusal.code, refusal.retry_after_s) == (409, "conflict", -1)
        assert hashlib.sha256(first).hexdigest() in refusal.message
        assert hashlib.sha256(second).hexdigest() in refusal.message
        assert a.upload(1, first).status == 200


def test_late_early_and_uninvited(tmp_path: Path) -> None:
    with served(write_task(tmp_path, "over_selection = 1.5\n")) as server:
        a, b, late = (server.device(name) for name in ("a", "b", "late"))
        late.fetch(0, server.start)
        task, assignment = late.task(), late.check_in()
        body = late.update(task, assignment)
        uninvited = server.device("uninvited")
        uninvited.fetch(0, server.start)
        answer = uninvited.upload(1, uninvited.update(task, assignment))
        assert (answer.status, code_of(answer.body)) == (409, "not_assigned")
        a.take_part(server.start)
        b.take_part(server.start)
        server.wait_for_version(1)
        answer = late.upload(1, body)
        assert (answer.status, code_of(answer.body)) == (410, "late")
        future = Assignment(action="train", round=3, attempt=0, version=2, deadline_s=1.0, retry_after_s=0.0)
        answer = late.upload(3, late.update(task, future))
        assert (answer.status, code_of(answer.body)) == (409, "wrong_version")
        assert late.check_in().round == 2
        blobs = [p for p in (tmp_path / "run" / "blobs").rglob("*") if p.is_file()]
        assert len(blobs) == 2, "one state and one step; nothing of what was refused"


def test_the_deadline_reopens_a_round_and_keeps_what_came(tmp_path: Path) -> None:
    with served(write_task(tmp_path, "deadline_s = 0.6\nminimum = 2\n")) as server:
        a, silent = server.device("a"), server.device("silent")
        a.take_part(server.start)
        silent.fetch(0, server.start)
        first = silent.check_in()
        body = silent.update(silent.task(), first)
        while status_of(server.url)["round"]["attempt"] == 0:
            assert a.check_in().action == "wait"
        assert status_of(server.url)["round"]["accepted"] == ["a"]
        assert silent.upload(1, body).status == 200, "the first attempt's update still counts"
        server.wait_for_version(1)
        assert "1 updates at the deadline, 2 are needed" in server.lines[0]


def test_a_uniform_draw_over_http(tmp_path: Path) -> None:
    text = 'selection = "uniform"\npool_s = 0.4\n'
    with served(write_task(tmp_path, text, rounds=1)) as server:
        devices = [server.device(name) for name in "abcdef"]
        assert {d.check_in().action for d in devices} == {"wait"}
        run_to_end(devices, server.start)
        drawn = status_of(server.url)["clients"]
        assert len(drawn) == 2
        assert all(row["updates"] == 1 for row in drawn)


def test_a_restart_between_uploads_loses_nothing(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with served(task) as server:
        a = server.device("a")
        a.take_part(server.start)
        a.fetch(0, server.start)
        b = server.device("b")
        b.fetch(0, server.start)
        body = b.update(b.task(), b.check_in())
        assert a.evaluate().status == 200
        before = status_of(server.url)
    with served(task) as server:
        a.url = b.url = server.url
        after = status_of(server.url)
        assert after["round"]["accepted"] == ["a"]
        assert set(after["round"]["assigned"]) == {"a", "b"}
        assert after["bytes"]["update_up"] == before["bytes"]["update_up"] > 0
        assert after["history"][0]["loss"] == 1.0
        assert b.upload(1, body).status == 200, "assigned before the restart, welcome after it"
        server.wait_for_version(1)


def test_more_rounds_go_on_from_the_head(tmp_path: Path) -> None:
    with served(write_task(tmp_path, rounds=1, target=1)) as server:
        run_to_end([server.device("a")], server.start)
    with served(write_task(tmp_path, rounds=2, target=1)) as server:
        assert server.aggregator.state.version == 1
        run_to_end([server.device("a")], server.start)
        assert server.aggregator.state.version == 2


def test_bodies_are_counted_as_they_were_sent(tmp_path: Path) -> None:
    with served(write_task(tmp_path, target=1)) as server:
        a = server.device("a")
        assignment = a.check_in()
        a.fetch(0, server.start)
        down = len(call(server.url, "GET", "/v1/adapter/0", who="a").body)
        body = a.update(a.task(), assignment)
        a.upload(1, body)
        a.upload(1, body)
        for other in ("b", "c"):
            call(server.url, "GET", "/v1/adapter/0", who=other, headers={"Covey-Client": "a"})
        assert send(server.url, "GET", "/v1/adapter/0", headers={"Covey-Client": "a"}).status == 401
        row = status_of(server.url)["clients"][0]
        assert row["update_up"] == 2 * len(body)
        assert row["adapter_down"] == 2 * down
        counted = status_of(server.url)["bytes"]
        assert counted["routes"]["adapter"]["down"] >= 4 * down
        assert counted["unnamed_down"] > 0, "what strangers are told"
    with served(tmp_path / "task.toml") as server:
        assert status_of(server.url)["clients"][0]["adapter_down"] == 2 * down, "counters survive a restart"


def test_the_bundle_is_served_by_digest_with_ranges(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        manifest = call(server.url, "GET", "/v1/bundle")
        task = Task.from_bytes(call(server.url, "GET", "/v1/task").body)
        assert hashlib.sha256(manifest.body).hexdigest() == task.bundle
        assert manifest.headers["Content-Type"] == "application/json"
        file = json.loads(manifest.body)["files"]["onnx/train.onnx"]
        whole = call(server.url, "GET", f"/v1/blobs/{file['sha256']}")
        assert hashlib.sha256(whole.body).hexdigest() == file["sha256"]
        part = call(server.url, "GET", f"/v1/blobs/{file['sha256']}", headers={"Range": "bytes=100-199"})
        assert (part.status, part.body) == (206, whole.body[100:200])
        rest = call(server.url, "GET", f"/v1/blobs/{file['sha256']}", headers={"Range": "bytes=1800-"})
        assert (rest.status, rest.body) == (206, whole.body[1800:])
        beyond = call(server.url, "GET", f"/v1/blobs/{file['sha256']}", headers={"Range": "bytes=999999-"})
        assert beyond.status == 416
        routes = status_of(server.url)["bytes"]["routes"]
        assert routes["blob"]["down"] == len(whole.body) + len(part.body) + len(rest.body)


def test_the_signature_is_served_beside_the_manifest(tmp_path: Path) -> None:
    task, key = write_task(tmp_path), generate()
    with served(task) as server:
        missing = call(server.url, "GET", "/v1/bundle/signature")
        assert missing.status == 404
        assert "not signed" in Refusal.from_bytes(missing.body).message
        sign_folder(tmp_path / "bundle", key)
        signatures = call(server.url, "GET", "/v1/bundle/signature")
        manifest = call(server.url, "GET", "/v1/bundle")
    assert (signatures.status, signatures.headers["Content-Type"]) == (200, "text/plain")
    assert check_all(manifest.body, signatures.body) == (key.public,)


@pytest.mark.parametrize("client", ["a/../b", "%2e%2e", ".hidden", "x" * 65, "a%00b", "a b", "ä"])
def test_names_cannot_leave_their_place(tmp_path: Path, client: str) -> None:
    with served(write_task(tmp_path)) as server:
        path = f"/v1/updates/1/{client}".replace(" ", "%20").replace("ä", "%C3%A4")
        answer = call(server.url, "PUT", path, b"x", MSGPACK)
        assert answer.status in (400, 404)
        assert code_of(answer.body) in ("bad_message", "not_found")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/task", 405, "method_not_allowed"),
        ("GET", "/v1/blobs/" + "0" * 64, 404, "not_found"),
        ("GET", "/v1/blobs/../../covey.sqlite", 404, "not_found"),
        ("GET", "/v1/blobs/%2e%2e%2fcovey.sqlite", 404, "not_found"),
        ("GET", "/v1/adapter/7", 409, "wrong_version"),
        ("GET", "/v1/adapter/-1", 400, "bad_message"),
        ("GET", "/v1/adapter/0?held=x", 400, "bad_message"),
        ("GET", "/v1/adapter/99999999999999999999", 400, "bad_message"),
        ("PUT", "/v1/updates/x/a", 400, "bad_message"),
        ("PUT", "/v1/updates/1/a", 400, "bad_message"),
    ],
)
def test_what_is_not_there(tmp_path: Path, method: str, path: str, status: int, code: str) -> None:
    with served(write_task(tmp_path)) as server:
        answer = call(server.url, method, path, b"x" if method == "PUT" else None, MSGPACK)
        assert (answer.status, code_of(answer.body)) == (status, code)
        assert answer.headers["Content-Type"] == "application/msgpack"


def test_an_evaluation_of_what_does_not_exist_or_of_another_layout(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        a = server.device("a")
        a.fetch(0, server.start)
        assert a.evaluate().status == 200
        a.version = 5
        answer = a.evaluate()
        assert (answer.status, code_of(answer.body)) == (409, "wrong_version")
        other = Device(server.url, "b", type(LAYOUT)(LAYOUT.tensors[:1]), version=0)
        answer = other.evaluate()
        assert (answer.status, code_of(answer.body)) == (409, "wrong_layout")


def test_a_device_with_another_layout_or_codec_is_told(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        a = server.device("a")
        a.fetch(0, server.start)
        task, assignment = a.task(), a.check_in()
        answer = a.upload(1, a.update(task, assignment, layout="0" * 64))
        assert (answer.status, code_of(answer.body)) == (409, "wrong_layout")
        dense = (StageSpec(name="pack", args={"values": "f32"}),)
        codec = codec_from_spec(dense, LAYOUT)
        parts, _ = codec.encode(a.change(1), codec.init(0))
        answer = a.upload(1, a.update(task, assignment, codec=dense, parts=parts))
        assert (answer.status, code_of(answer.body)) == (409, "wrong_codec")
        assert status_of(server.url)["round"]["accepted"] == []


def test_an_adapter_message_is_encoded_once(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        bodies = {call(server.url, "GET", "/v1/adapter/0?held=-1").body for _ in range(3)}
        assert len(bodies) == 1
        assert Adapter.from_bytes(bodies.pop()).layout == LAYOUT.digest
        assert len(server.aggregator.shelf.cache._done) == 1


def test_the_page_escapes_what_strangers_say(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        server.device("a").check_in()
        answer = send(server.admin, "GET", "/")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"<script" not in answer.body
        assert b"covey join" in answer.body
