package covey.core.client

import covey.core.MessageException
import covey.core.Reason
import covey.core.RefusedException
import covey.core.ServerException
import covey.core.UsageException
import covey.core.because
import covey.core.model.Layout
import covey.core.model.Manifest
import covey.core.wire.Adapter
import covey.core.wire.Assignment
import covey.core.wire.CheckIn
import covey.core.wire.Enroll
import covey.core.wire.Enrolled
import covey.core.wire.Evaluation
import covey.core.wire.Form
import covey.core.wire.Hello
import covey.core.wire.Message
import covey.core.wire.PROTOCOL
import covey.core.wire.SealedVault
import covey.core.wire.Task

/** The protocol's calls: messages in, messages out. Paths and limits are those of docs/protocol.md. */
class Calls(val network: Retrying, val url: String) {
    /**
     * The name that this device's key has at the server, enrolled with [code] if it has none yet; [wish] is the one that it
     * would like to have. Throws [UsageException] where the server does not know the key and takes no such code.
     */
    fun enroll(wish: String, code: String): String {
        val hello = read(Hello, network.exchange(Request("GET", "/v1/hello", signed = false)))
        if (hello.protocol != PROTOCOL) {
            throw UsageException("the server speaks protocol ${hello.protocol}, this client $PROTOCOL: update the older one").because(Reason.OTHER_VERSION, url)
        }
        val answer = try {
            network.exchange(Request("POST", "/v1/enroll", Enroll(wish, code).toBytes()))
        } catch (error: RefusedException) {
            throw UsageException("$url: ${error.sentence}").because(Reason.REFUSED, error.code, error.sentence)
        }
        return read(Enrolled, answer).client
    }

    /** What there is to join. */
    fun task(): Task = read(Task, network.exchange(Request("GET", "/v1/task")))

    /** The bytes of the bundle's manifest; their digest is not checked here. */
    fun manifest(): ByteArray =
        network.exchange(Request("GET", "/v1/bundle", limit = Manifest.MAX_BYTES.toLong(), kind = BUNDLE))

    /** The bundle's signature file, empty where it has none; not checked here. */
    fun signatures(): ByteArray = try {
        network.exchange(Request("GET", "/v1/bundle/signature", limit = BundleTrust.MAX_BYTES))
    } catch (error: RefusedException) {
        if (error.status != 404) throw error
        ByteArray(0)
    }

    /** Offer this device. */
    fun checkIn(message: CheckIn): Assignment =
        read(Assignment, network.exchange(Request("POST", "/v1/checkin", message.toBytes())))

    /**
     * How to come to a version from the one held, of what all devices have or of a [cohort]'s copies. No honest answer is
     * longer than twice the dense adapter.
     */
    fun adapter(version: Int, held: Int, layout: Layout, cohort: Int? = null): Adapter {
        val limit = 8L * layout.size + Request.SMALL_BYTES
        val path = "/v1/adapter/$version?held=$held" + if (cohort == null) "" else "&cohort=$cohort"
        val data = network.exchange(Request("GET", path, limit = limit, kind = ADAPTER))
        val message = read(Adapter, data)
        if (message.version != version) {
            throw ServerException("$url sends version ${message.version} of the adapter, asked for $version")
        }
        return message
    }

    /** Report a held-out loss; repeating replaces. */
    fun evaluation(message: Evaluation) {
        network.exchange(Request("PUT", "/v1/evaluations/${message.version}/${message.client}", message.toBytes()))
    }

    /** A vault's bytes, of at most [limit]. */
    fun vault(address: String, limit: Int): ByteArray =
        read(SealedVault, network.exchange(Request("GET", "/v1/vaults/$address", limit = limit + 1024L, kind = VAULT))).sealed

    /** Keep a vault in the place of this device's last one. */
    fun keepVault(address: String, sealed: ByteArray) {
        network.exchange(Request("PUT", "/v1/vaults/$address", SealedVault(sealed).toBytes(), kind = VAULT))
    }

    /** Delete a vault. */
    fun deleteVault(address: String) {
        network.exchange(Request("DELETE", "/v1/vaults/$address"))
    }

    private fun <M : Message> read(form: Form<M>, data: ByteArray): M = read(form, data, url)

    companion object {
        internal fun <M : Message> read(form: Form<M>, data: ByteArray, url: String): M = try {
            form.fromBytes(data)
        } catch (error: MessageException) {
            throw ServerException("$url is not a Covey server of this version: ${error.sentence}").because(Reason.NOT_A_SERVER, url)
        }

        /** The counters of [Traffic] that people ask for. */
        const val ADAPTER = "adapter"
        const val UPDATE = "update"
        const val BUNDLE = "bundle"
        const val VAULT = "vault"
    }
}
