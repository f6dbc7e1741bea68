package covey.core.client

import covey.core.MessageException
import covey.core.Reason
import covey.core.ServerException
import covey.core.because
import covey.core.wire.Hello
import java.io.InputStream
import java.security.MessageDigest

/**
 * What signs a device's requests: HTTP Message Signatures (RFC 9421) in the one form of docs/protocol.md, over method, path,
 * query, the body's digest and a nonce of the server's that is good once. Each answer brings the next nonce.
 */
class Signing(private val key: DeviceKey, private val now: () -> Long = { System.nanoTime() }) {
    private val nonces = ArrayDeque<Pair<String, Long>>()

    /** The oldest nonce at hand, which is used up by this; null where there is none. */
    fun next(): String? {
        while (nonces.isNotEmpty() && now() - nonces.first().second > LIFE_NS) nonces.removeFirst()
        return nonces.removeFirstOrNull()?.first
    }

    /** Keep the nonce that an answer brought. */
    fun keep(nonce: String) {
        if (nonce.length !in 8..64) return
        nonces.addLast(nonce to now())
        while (nonces.size > KEPT) nonces.removeFirst()
    }

    /** The three headers for a request. */
    fun headers(method: String, target: String, body: ByteArray, nonce: String): Map<String, String> {
        val digest = contentDigest(body)
        val params = "$COMPONENTS;nonce=\"$nonce\";keyid=\"${key.publicText}\";tag=\"covey-1\""
        val signature = fixedSignature(key.sign(signatureBase(method, target, digest, params).toByteArray()))
        return mapOf(
            "Content-Digest" to digest, "Signature-Input" to "covey=$params", "Signature" to "covey=:${base64(signature)}:",
        )
    }

    companion object {
        private const val COMPONENTS = "(\"@method\" \"@path\" \"@query\" \"content-digest\")"
        private const val LIFE_NS = 3000L * 1_000_000_000 // a nonce lives for an hour at the server
        private const val KEPT = 4

        /** The value of Content-Digest. */
        fun contentDigest(body: ByteArray): String = "sha-256=:${base64(MessageDigest.getInstance("SHA-256").digest(body))}:"

        /** What is signed; [target] is path and query exactly as they stand in the request line. */
        fun signatureBase(method: String, target: String, digest: String, params: String): String =
            "\"@method\": $method\n\"@path\": ${target.substringBefore('?')}\n\"@query\": ?${target.substringAfter('?', "")}\n" +
                "\"content-digest\": $digest\n\"@signature-params\": $params"

        /** r and s of 32 bytes each, from the DER that every platform's signer writes. */
        fun fixedSignature(der: ByteArray): ByteArray {
            val out = ByteArray(64)
            var at = 2 // a sequence of less than 128 bytes: its header is two long
            for (half in 0..1) {
                val length = der[at + 1].toInt()
                val number = der.copyOfRange(at + 2, at + 2 + length).dropWhile { it == 0.toByte() }
                if (der[at] != 2.toByte() || number.size > 32) throw ServerException("this device's key does not sign as P-256 does")
                number.forEachIndexed { i, byte -> out[32 * half + 32 - number.size + i] = byte }
                at += 2 + length
            }
            return out
        }
    }
}

/** Signs what goes through it and keeps the nonces that come back; a first nonce is asked for where none is at hand. */
class SignedHttp(private val http: Http, private val signing: Signing, private val url: String) : Http {
    override fun exchange(request: Request): Answer {
        if (!request.signed) return http.exchange(request)
        val nonce = signing.next() ?: hello() ?: return http.exchange(HELLO) // which says why there is none
        return http.exchange(signed(request, nonce)).also { signing.keep(it.header(NONCE)) }
    }

    override fun stream(request: Request, read: (Answer, InputStream) -> Unit): Answer? {
        val nonce = signing.next() ?: hello() ?: return http.exchange(HELLO)
        val refused = http.stream(signed(request, nonce)) { answer, body ->
            signing.keep(answer.header(NONCE))
            read(answer, body)
        }
        refused?.let { signing.keep(it.header(NONCE)) }
        return refused
    }

    private fun signed(request: Request, nonce: String): Request =
        request.with(signing.headers(request.method, request.path, request.body ?: ByteArray(0), nonce))

    private fun hello(): String? {
        val answer = http.exchange(HELLO)
        if (answer.status != 200) return null
        try {
            return Hello.fromBytes(answer.body).nonce
        } catch (error: MessageException) {
            throw ServerException("$url is not a Covey server of this version: ${error.sentence}").because(Reason.NOT_A_SERVER, url)
        }
    }

    companion object {
        private const val NONCE = "covey-nonce"
        private val HELLO = Request("GET", "/v1/hello", signed = false)
    }
}
