package covey.core

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import covey.core.cli.JdkHttp
import covey.core.client.Parcel
import covey.core.client.Retrying
import covey.core.client.StateFolder
import covey.core.client.Traffic
import covey.core.client.UploadRecord
import covey.core.client.Uploads
import covey.core.model.sha256
import covey.core.wire.Receipt
import covey.core.wire.Refusal
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.ByteArrayOutputStream
import java.io.File
import java.net.InetSocketAddress

/** An update over a link that breaks: a small server that keeps what has arrived and cuts the connection now and then. */
class UploadsTest {
    private lateinit var server: HttpServer
    private val stored = ByteArrayOutputStream()
    private val seen = ArrayList<String>()
    private var cuts = 0
    private var forgets = 0
    private var stale = 0
    private var refusal: Refusal? = null

    @TempDir
    lateinit var folder: File

    @BeforeEach
    fun serve() {
        server = HttpServer.create(InetSocketAddress("127.0.0.1", 0), 0)
        server.createContext("/") { exchange -> exchange.use(::answer) }
        server.start()
    }

    @AfterEach
    fun stop() = server.stop(0)

    private fun answer(exchange: HttpExchange) {
        seen += exchange.requestMethod
        val sent = exchange.requestBody.readAllBytes()
        val header = { name: String -> exchange.requestHeaders.getFirst(name) }
        refusal?.let { return reply(exchange, 410, it.toBytes()) }
        when (exchange.requestMethod) {
            "PUT" -> if (cuts-- > 0) return else return receipt(exchange, sent)
            "POST" -> {
                stored.reset()
                exchange.responseHeaders.add("Location", "/v1/uploads/ada/x7")
                exchange.responseHeaders.add("Upload-Offset", "0")
                reply(exchange, 201, ByteArray(0))
            }
            "HEAD" -> if (stale-- > 0) reply(exchange, 401, ByteArray(0)) else if (forgets-- > 0) reply(exchange, 404, ByteArray(0)) else offset(exchange)
            "PATCH" -> {
                if (header("Upload-Offset").toInt() != stored.size()) {
                    return reply(exchange, 409, Refusal("wrong_offset", "it is ${stored.size()}", -1.0).toBytes())
                }
                if (cuts-- > 0) { // a part of it has arrived when the line dies
                    stored.write(sent, 0, sent.size / 3)
                    return
                }
                stored.write(sent)
                if (header("Upload-Complete") == "?1") receipt(exchange, stored.toByteArray()) else offset(exchange)
            }
        }
    }

    private fun offset(exchange: HttpExchange) {
        exchange.responseHeaders.add("Upload-Offset", "${stored.size()}")
        reply(exchange, 204, ByteArray(0))
    }

    private fun receipt(exchange: HttpExchange, body: ByteArray) =
        reply(exchange, 200, Receipt("accepted", 3, sha256(body), body.size.toLong(), 4, 0).toBytes())

    private fun reply(exchange: HttpExchange, status: Int, body: ByteArray) {
        exchange.sendResponseHeaders(status, if (body.isEmpty()) -1 else body.size.toLong())
        if (exchange.requestMethod != "HEAD") exchange.responseBody.write(body)
    }

    private fun deliver(parcel: Parcel): Receipt = StateFolder.open(folder).use {
        val url = "http://127.0.0.1:${server.address.port}"
        Uploads(Retrying(JdkHttp(url), url, FakeClock(), Traffic()) {}, url, it).deliver(parcel)
    }

    private fun parcel(size: Int) = Parcel(3, 2, "ada", ByteArray(size) { (it * 7).toByte() })

    @Test
    fun `a small update goes in one piece, again and again`() {
        cuts = 2
        assertEquals(parcel(900).digest, deliver(parcel(900)).digest)
        assertEquals(listOf("PUT", "PUT", "PUT"), seen)
    }

    @Test
    fun `one whose PUT breaks off goes on in pieces`() {
        cuts = 1
        assertEquals(parcel(100_000).digest, deliver(parcel(100_000)).digest)
        assertEquals(listOf("PUT", "POST", "PATCH"), seen)
    }

    @Test
    fun `a large update survives a line that dies in every piece`() {
        cuts = 4
        val parcel = parcel(1_300_000)
        assertEquals(parcel.digest, deliver(parcel).digest)
        assertArrayEquals(parcel.body, stored.toByteArray())
        assertTrue(seen.count { it == "HEAD" } == 4, seen.toString())
        assertTrue(!File(folder, "upload").exists())
    }

    @Test
    fun `an upload that the server knows no more is begun anew`() {
        StateFolder.open(folder).use { it.save("upload", UploadRecord("/v1/uploads/ada/x7", parcel(1_300_000).digest)) }
        forgets = 1
        assertEquals(parcel(1_300_000).digest, deliver(parcel(1_300_000)).digest)
        assertEquals(listOf("HEAD", "POST", "PATCH", "PATCH", "PATCH"), seen)
    }

    @Test
    fun `a nonce that is too old is no reason to begin anew`() {
        cuts = 1
        stale = 1
        assertEquals(parcel(1_000_000).digest, deliver(parcel(1_000_000)).digest)
        assertEquals(listOf("POST", "PATCH", "HEAD", "HEAD", "PATCH", "PATCH"), seen)
    }

    @Test
    fun `a refusal is final and forgets the address`() {
        refusal = Refusal("late", "the round is closed", -1.0)
        assertEquals("late", assertThrows(RefusedException::class.java) { deliver(parcel(1_000_000)) }.code)
        assertTrue(!File(folder, "upload").exists())
    }
}
