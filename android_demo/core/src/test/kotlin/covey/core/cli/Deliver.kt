package covey.core.cli

import covey.core.client.Calls
import covey.core.client.NOTHING
import covey.core.client.Parcel
import covey.core.client.Pending
import covey.core.client.Retrying
import covey.core.client.SignedHttp
import covey.core.client.Signing
import covey.core.client.StateFolder
import covey.core.client.Traffic
import covey.core.client.Uploads
import covey.core.codec.codecFromSpec
import covey.core.model.Layout
import covey.core.model.Tensor
import covey.core.wire.CheckIn
import covey.core.wire.Update
import java.io.File

/**
 * One update over the real protocol without a model: asks for work, makes an update of that shape, keeps its bytes, and
 * delivers them; started again after a kill it goes on with the same bytes.
 *
 *     java covey.core.cli.DeliverKt URL STATE_FOLDER NAME ROWS COLUMNS
 */
fun main(arguments: Array<String>) {
    val (url, state, name) = arguments
    StateFolder.open(File(state), ::syncFolder).use { folder ->
        val traffic = Traffic()
        val network = Retrying(SignedHttp(JdkHttp(url), Signing(key(File(state))), url), url, SystemClock, traffic) { println("notice $it") }
        network.backoff = network.backoff.copy(firstS = 0.01, longestS = 0.05)
        val calls = Calls(network, url)
        calls.enroll(name, "")
        val pending = folder.load("body", Pending) {} ?: update(calls, name, arguments[3].toInt(), arguments[4].toInt()).also { folder.save("body", it) }
        val receipt = Uploads(network, url, folder).deliver(Parcel(pending.round, pending.version, name, pending.body))
        println("delivered ${pending.round} ${pending.body.size} ${receipt.status} ${receipt.digest} ${traffic.sent[Calls.UPDATE]}")
    }
}

private fun update(calls: Calls, name: String, rows: Int, columns: Int): Pending {
    val task = calls.task()
    val layout = Layout(listOf(Tensor("b", listOf(rows, columns), "block", "zeros")))
    val assignment = calls.checkIn(CheckIn(name, task.layout, NOTHING, 10, "executorch"))
    check(assignment.action == "train") { assignment }
    val codec = codecFromSpec(task.uploadCodec, layout)
    val change = FloatArray(layout.size) { (it * 7 % 23 - 11) / 8192f }
    val (parts, memory) = codec.encode(change, codec.init(1), change)
    val body = Update(
        name, layout.digest, assignment.round, assignment.attempt, assignment.version, task.uploadCodec, parts, 10, 1, 2.0, 1.0, 1.0,
    ).toBytes()
    return Pending(assignment.round, assignment.attempt, assignment.version, body, "", memory)
}
