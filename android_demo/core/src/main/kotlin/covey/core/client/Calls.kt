package covey.core.client

import covey.core.MessageException
import covey.core.ServerException
import covey.core.UsageException
import covey.core.model.Layout
import covey.core.model.Manifest
import covey.core.wire.Adapter
import covey.core.wire.Assignment
import covey.core.wire.CheckIn
import covey.core.wire.Evaluation
import covey.core.wire.Form
import covey.core.wire.Message
import covey.core.wire.PROTOCOL
import covey.core.wire.Receipt
import covey.core.wire.Task

/** The protocol's calls: messages in, messages out. Paths and limits are those of docs/protocol.md. */
class Calls(val network: Retrying, private val url: String) {
    /** What there is to join. */
    fun task(): Task {
        val task = read(Task, network.exchange(Request("GET", "/v1/task")))
        if (task.protocol != PROTOCOL) {
            throw UsageException("the server speaks protocol ${task.protocol}, this client $PROTOCOL: update the older one")
        }
        return task
    }

    /** The bytes of the bundle's manifest; their digest is not checked here. */
    fun manifest(): ByteArray =
        network.exchange(Request("GET", "/v1/bundle", limit = Manifest.MAX_BYTES.toLong(), kind = BUNDLE))

    /** Offer this device. */
    fun checkIn(message: CheckIn): Assignment =
        read(Assignment, network.exchange(Request("POST", "/v1/checkin", message.toBytes())))

    /** How to come to a version from the one held. No honest answer is longer than twice the dense adapter. */
    fun adapter(version: Int, held: Int, layout: Layout): Adapter {
        val limit = 8L * layout.size + Request.SMALL_BYTES
        val data = network.exchange(Request("GET", "/v1/adapter/$version?held=$held", limit = limit, kind = ADAPTER))
        val message = read(Adapter, data)
        if (message.version != version) {
            throw ServerException("$url sends version ${message.version} of the adapter, asked for $version")
        }
        return message
    }

    /** Upload an update; repeated with the same bytes as often as needed, it counts once. */
    fun update(round: Int, client: String, body: ByteArray): Receipt =
        read(Receipt, network.exchange(Request("PUT", "/v1/updates/$round/$client", body, kind = UPDATE)))

    /** Report a held-out loss; repeating replaces. */
    fun evaluation(message: Evaluation) {
        network.exchange(Request("PUT", "/v1/evaluations/${message.version}/${message.client}", message.toBytes()))
    }

    private fun <M : Message> read(form: Form<M>, data: ByteArray): M = try {
        form.fromBytes(data)
    } catch (error: MessageException) {
        throw ServerException("$url is not a Covey server of this version: ${error.sentence}")
    }

    companion object {
        /** The counters of [Traffic] that people ask for. */
        const val ADAPTER = "adapter"
        const val UPDATE = "update"
        const val BUNDLE = "bundle"
    }
}
