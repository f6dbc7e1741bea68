package covey.core.client

import covey.core.RefusedException
import covey.core.ServerException
import covey.core.model.sha256
import covey.core.wire.Form
import covey.core.wire.Kind
import covey.core.wire.Message
import covey.core.wire.Receipt
import covey.core.wire.Values
import java.io.IOException

/** An update on its way: where it belongs and its exact bytes. */
class Parcel(val round: Int, val version: Int, val client: String, val body: ByteArray) {
    /** The digest of its bytes, in hex. */
    val digest: String = sha256(body)

    /** Its address in one piece. */
    val path: String get() = "/v1/updates/$round/$client"
}

/** The address of an upload in pieces, kept on disk so that a client that is killed goes on from where the server is. */
data class UploadRecord(val address: String, val digest: String) : Message {
    override val form get() = UploadRecord
    override fun fields() = listOf(address, digest)

    companion object : Form<UploadRecord>("UploadRecord", "address" to Kind.Text, "digest" to Kind.Text) {
        override fun make(v: Values) = UploadRecord(v["address"], v["digest"])
    }
}

/**
 * Delivers an update over a link that breaks: a small one by one PUT, repeated until it is answered; a larger one, or
 * one whose PUT broke off, in pieces, in the shapes of draft-ietf-httpbis-resumable-upload (see docs/protocol.md).
 */
class Uploads(private val network: Retrying, private val url: String, private val folder: StateFolder) {
    /** The receipt, however long it takes; throws [RefusedException] for a final no. */
    fun deliver(parcel: Parcel): Receipt {
        val receipt = try {
            whole(parcel) ?: Pieces(parcel).deliver()
        } catch (error: RefusedException) {
            folder.forget(FILE)
            throw error
        }
        folder.forget(FILE)
        return receipt
    }

    /** By PUT; null where that broke off and pieces are worth their requests. */
    private fun whole(parcel: Parcel): Receipt? {
        val put = Request("PUT", parcel.path, parcel.body, kind = Calls.UPDATE)
        if (parcel.body.size <= TINY) return receipt(network.exchange(put))
        if (parcel.body.size > SMALL || remembered(parcel).isNotEmpty()) return null
        return try {
            receipt(network.once(put).body)
        } catch (_: Busy) {
            receipt(network.exchange(put))
        } catch (_: IOException) {
            null // what has arrived is lost; from here on it is kept
        }
    }

    private fun receipt(body: ByteArray): Receipt = Calls.read(Receipt, body, url)

    private fun remembered(parcel: Parcel): String {
        val record = folder.load(FILE, UploadRecord) {} ?: return ""
        return if (record.digest == parcel.digest && record.address.startsWith("/v1/uploads/")) record.address else ""
    }

    private inner class Pieces(private val parcel: Parcel) {
        private var address = remembered(parcel)
        private var offset = 0
        private var told = 0
        private var freshStarts = 0

        fun deliver(): Receipt {
            while (true) {
                try {
                    return network.retried(::progressed) { goOn() }
                } catch (error: RefusedException) {
                    freshStarts++
                    if (error.code !in AGAIN || freshStarts > MAX_FRESH_STARTS || address.isEmpty()) throw error
                    if (error.code != "wrong_offset") { // then the next try asks for the right one
                        address = ""
                        offset = 0
                    }
                }
            }
        }

        /** Whether bytes have arrived since it was last asked: then the link is poor, not gone. */
        private fun progressed(): Boolean = (offset > told).also { told = offset }

        /** One try: from the server's offset to the end. */
        private fun goOn(): Receipt {
            if (address.isEmpty()) {
                begin()?.let { return it }
            } else {
                offset = asked()
            }
            while (true) {
                val answer = sendPiece()
                if (answer.status == 200) return receipt(answer.body)
                offset = offsetOf(answer)
            }
        }

        /** The server's offset. The answer to a HEAD has no body, so what a refusal means is read off its status. */
        private fun asked(): Int {
            val head = Request("HEAD", address, kind = Calls.UPDATE)
            val first = network.once(head, setOf(204, 401, 404))
            val answer = if (first.status == 401) network.once(head, setOf(204, 404)) else first // it brought a newer nonce
            if (answer.status == 404) throw RefusedException("the server does not know the upload any more", 404, "not_found")
            return offsetOf(answer)
        }

        /** An address for the update, remembered; or its receipt, if it had been counted all along. */
        private fun begin(): Receipt? {
            val headers = mapOf(
                "Upload-Complete" to "?0", "Upload-Length" to "${parcel.body.size}", "Repr-Digest" to Signing.contentDigest(parcel.body),
            )
            val path = "${parcel.path}?version=${parcel.version}&sha256=${parcel.digest}"
            val answer = network.once(Request("POST", path, ByteArray(0), kind = Calls.UPDATE, headers = headers), setOf(200, 201))
            if (answer.status == 200) return receipt(answer.body)
            val where = answer.header("location")
            if (!where.startsWith("/v1/uploads/${parcel.client}/") || where.length > 500) {
                throw ServerException("$url sends an update to '${where.take(100)}', which is not one of its own")
            }
            folder.save(FILE, UploadRecord(where, parcel.digest))
            address = where
            offset = offsetOf(answer)
            return null
        }

        private fun sendPiece(): Answer {
            val end = minOf(offset + PIECE, parcel.body.size)
            val headers = mapOf(
                "Upload-Offset" to "$offset", "Upload-Complete" to if (end == parcel.body.size) "?1" else "?0",
            )
            val piece = parcel.body.copyOfRange(offset, end)
            val request = Request("PATCH", address, piece, kind = Calls.UPDATE, headers = headers, contentType = "application/partial-upload")
            return network.once(request, setOf(200, 204))
        }

        private fun offsetOf(answer: Answer): Int {
            val text = answer.header("upload-offset")
            val number = if (text.length <= 10 && text.all { it in '0'..'9' }) text.toIntOrNull() else null
            if (number == null || number > parcel.body.size) {
                throw ServerException("$url says that it has '${text.take(40)}' of ${parcel.body.size} bytes")
            }
            return number
        }
    }

    companion object {
        private const val FILE = "upload"
        private const val TINY = 32 * 1024 // up to here a piece would not be worth the requests
        private const val SMALL = 256 * 1024 // up to here one PUT is tried first
        private const val PIECE = 512 * 1024

        /** Refusals of an upload, not of the update: it expired, it lost bytes, or another connection was faster. */
        private val AGAIN = setOf("not_found", "wrong_digest", "wrong_offset")
        private const val MAX_FRESH_STARTS = 5
    }
}
