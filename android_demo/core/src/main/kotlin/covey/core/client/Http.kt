package covey.core.client

import covey.core.Reason
import covey.core.ServerException
import covey.core.UsageException
import covey.core.because
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.URI
import java.net.URISyntaxException
import java.net.URL

/** One request. [path] begins with a slash; [limit] is how many bytes of an answer make sense; [kind] names its counter. */
class Request(
    val method: String,
    val path: String,
    val body: ByteArray? = null,
    val limit: Long = SMALL_BYTES,
    val kind: String = "control",
    val headers: Map<String, String> = emptyMap(),
    val contentType: String = "application/msgpack",
    val signed: Boolean = true,
) {
    /** The same with more headers. */
    fun with(more: Map<String, String>) = Request(method, path, body, limit, kind, headers + more, contentType, signed)

    companion object {
        /** More than any control message or refusal. */
        const val SMALL_BYTES = 1L shl 20
    }
}

/** An answer whose body is at hand. */
class Answer(val status: Int, private val headers: Map<String, String>, val body: ByteArray) {
    /** A header by its name in lower case, or an empty text. */
    fun header(name: String): String = headers[name].orEmpty()
}

/** A way to the server; throws [java.io.IOException] where the network fails. */
interface Http {
    /** One exchange. */
    fun exchange(request: Request): Answer

    /** One exchange whose 200 or 206 is given to [read] piece by piece; any other answer is returned. */
    fun stream(request: Request, read: (Answer, InputStream) -> Unit): Answer?
}

/**
 * HTTP by the platform's own `HttpURLConnection`: it is on every Android and every JVM, does TLS with the system's trust
 * and the app's network security configuration, and five requests a round need no connection pool. No redirects, no
 * cookies, no compression behind our back.
 */
class PlatformHttp(private val url: String) : Http {
    override fun exchange(request: Request): Answer = open(request) { connection ->
        val status = connection.responseCode
        refuseEncoding(connection)
        answer(connection, status, readBounded(connection, status, request))
    }

    override fun stream(request: Request, read: (Answer, InputStream) -> Unit): Answer? = open(request) { connection ->
        val status = connection.responseCode
        refuseEncoding(connection)
        if (status != 200 && status != 206) {
            answer(connection, status, readBounded(connection, status, request))
        } else {
            connection.inputStream.use { read(answer(connection, status, ByteArray(0)), it) }
            null
        }
    }

    private fun <T> open(request: Request, use: (HttpURLConnection) -> T): T {
        val connection = URL(url + request.path).openConnection() as HttpURLConnection
        try {
            connection.requestMethod = request.method
            connection.instanceFollowRedirects = false
            connection.useCaches = false
            connection.connectTimeout = CONNECT_MS
            connection.readTimeout = IDLE_MS
            connection.setRequestProperty("User-Agent", "covey-jvm/$CLIENT_VERSION")
            connection.setRequestProperty("Accept-Encoding", "identity")
            for ((name, value) in request.headers) connection.setRequestProperty(name, value)
            request.body?.let { send(connection, it, request.contentType) }
            return use(connection)
        } finally {
            connection.disconnect()
        }
    }

    private fun send(connection: HttpURLConnection, body: ByteArray, type: String) {
        connection.setRequestProperty("Content-Type", type)
        connection.doOutput = true
        connection.setFixedLengthStreamingMode(body.size) // no second try behind our back, no copy of the body
        connection.outputStream.use { it.write(body) }
    }

    private fun answer(connection: HttpURLConnection, status: Int, body: ByteArray): Answer {
        val headers = connection.headerFields.filterKeys { it != null }
            .entries.associate { (name, values) -> name.lowercase() to values.firstOrNull().orEmpty() }
        return Answer(status, headers, body)
    }

    private fun readBounded(connection: HttpURLConnection, status: Int, request: Request): ByteArray {
        val stream = (if (status >= 400) connection.errorStream else connection.inputStream) ?: return ByteArray(0)
        val out = java.io.ByteArrayOutputStream()
        val piece = ByteArray(1 shl 16)
        stream.use {
            while (true) {
                val got = it.read(piece)
                if (got < 0) return out.toByteArray()
                out.write(piece, 0, got)
                if (out.size() > request.limit) {
                    throw ServerException("$url answers ${request.path} with more than ${request.limit} bytes, which makes no sense")
                }
            }
        }
    }

    private fun refuseEncoding(connection: HttpURLConnection) {
        val encoding = connection.contentEncoding ?: "identity"
        if (!encoding.equals("identity", ignoreCase = true)) {
            throw ServerException("$url answers compressed, which was not asked for; is a proxy between?")
        }
    }

    companion object {
        private const val CONNECT_MS = 10_000
        private const val IDLE_MS = 60_000
    }
}

/** The version of this client, compared with a bundle's `minimum_client`. */
const val CLIENT_VERSION = "0.1.0"

/** The URL without a trailing slash; throws [UsageException] for what is not the address of a server. */
fun serverUrl(text: String): String {
    val parts = try {
        URI(text.trim())
    } catch (_: URISyntaxException) {
        null
    }
    val usable = parts != null && parts.scheme in setOf("http", "https") && !parts.host.isNullOrEmpty() &&
        parts.rawQuery == null && parts.rawFragment == null && parts.rawUserInfo == null
    if (!usable) throw UsageException("'${text.take(80)}' is not a server's address: write https://HOST or http://HOST:PORT").because(Reason.ADDRESS, text.take(80))
    return text.trim().trimEnd('/')
}
