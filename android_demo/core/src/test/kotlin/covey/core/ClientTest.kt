package covey.core

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import covey.core.client.Backoff
import covey.core.client.BundleTrust
import covey.core.client.Bundles
import covey.core.client.Calls
import covey.core.client.ClientRecord
import covey.core.client.Clock
import covey.core.client.PlatformHttp
import covey.core.client.DeviceKey
import covey.core.client.Invitation
import covey.core.client.Request
import covey.core.client.Retrying
import covey.core.client.Scored
import covey.core.client.SignedHttp
import covey.core.client.Signing
import covey.core.client.SoftwareKey
import covey.core.client.StateFolder
import covey.core.client.Traffic
import covey.core.client.parseRetryAfter
import covey.core.client.serverUrl
import covey.core.model.Layout
import covey.core.model.Manifest
import covey.core.model.Tensor
import covey.core.model.sha256
import covey.core.wire.Hello
import covey.core.wire.Refusal
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.math.BigInteger
import java.net.InetSocketAddress
import java.security.KeyPairGenerator
import java.security.Signature
import java.util.Base64

/** A clock that does not wait but remembers what it was asked to. */
class FakeClock : Clock {
    val waits = ArrayList<Double>()
    private var now = 0.0
    override fun seconds() = now
    override fun sleep(seconds: Double) { waits += seconds; now += seconds }
    override fun draw() = 0.5
}

/** The network and the disk: real sockets on loopback, a server that misbehaves, files that are damaged. */
class ClientTest {
    private lateinit var server: HttpServer
    private lateinit var url: String
    private val clock = FakeClock()
    private val notices = ArrayList<String>()
    private val seen = ArrayList<String>()
    private val answers = ArrayDeque<(HttpExchange) -> Unit>()

    @TempDir
    lateinit var folder: File

    @BeforeEach
    fun serve() {
        server = HttpServer.create(InetSocketAddress("127.0.0.1", 0), 0)
        server.createContext("/") { exchange ->
            seen += "${exchange.requestMethod} ${exchange.requestURI}" + exchange.requestHeaders.getFirst("Range").orEmpty().let { " $it" }
            exchange.requestBody.readAllBytes()
            exchange.use { answers.removeFirst()(it) }
        }
        server.start()
        url = "http://127.0.0.1:${server.address.port}"
    }

    @AfterEach
    fun stop() = server.stop(0)

    private fun reply(status: Int, body: ByteArray, vararg headers: Pair<String, String>): (HttpExchange) -> Unit = { exchange ->
        for ((name, value) in headers) exchange.responseHeaders.add(name, value)
        exchange.sendResponseHeaders(status, if (body.isEmpty()) -1 else body.size.toLong())
        exchange.responseBody.write(body)
    }

    private fun http() = PlatformHttp(url)
    private fun network() = Retrying(http(), url, clock, Traffic()) { notices += it }

    @Test
    fun `busy servers are asked again, never sooner than they said`() {
        answers += reply(503, Refusal("busy", "come back", 7.0).toBytes())
        answers += reply(429, ByteArray(0), "Retry-After" to "3")
        answers += reply(200, "fine".toByteArray())
        assertEquals("fine", network().exchange(Request("GET", "/v1/task")).decodeToString())
        assertEquals(listOf(7.0 + 0.25, 3.0 + 0.5), clock.waits)
        assertEquals(1, notices.size)
        assertTrue("come back" in notices[0])
    }

    @Test
    fun `a refusal is final and says why`() {
        answers += reply(409, Refusal("conflict", "another update is counted", -1.0).toBytes())
        val error = assertThrows(RefusedException::class.java) { network().exchange(Request("PUT", "/x", ByteArray(3))) }
        assertEquals(Triple("another update is counted", 409, "conflict"), Triple(error.sentence, error.status, error.code))
        answers += reply(404, "nginx".toByteArray())
        val stranger = assertThrows(RefusedException::class.java) { network().exchange(Request("GET", "/x")) }
        assertTrue("is not a Covey server" in stranger.sentence)
        assertTrue(clock.waits.isEmpty())
    }

    @Test
    fun `no server is one sentence once the patience ends`() {
        server.stop(0)
        val network = network().also { it.backoff = Backoff(patienceS = 5.0) }
        val error = assertThrows(UnreachableException::class.java) { network.exchange(Request("GET", "/v1/task")) }
        assertTrue(url in error.sentence && clock.seconds() <= 5.0)
    }

    @Test
    fun `answers that are too long, compressed or redirected are not taken`() {
        answers += reply(200, ByteArray(3000))
        assertThrows(ServerException::class.java) { network().exchange(Request("GET", "/x", limit = 1000)) }
        answers += reply(200, ByteArray(10), "Content-Encoding" to "gzip")
        assertThrows(ServerException::class.java) { network().exchange(Request("GET", "/x")) }
        answers += reply(302, ByteArray(0), "Location" to "http://elsewhere/")
        assertThrows(RefusedException::class.java) { network().exchange(Request("GET", "/x")) }
        assertEquals(3, seen.size)
    }

    @Test
    fun `Retry-After is seconds or a date`() {
        assertEquals(3.0, parseRetryAfter("3", 0))
        assertEquals(10.0, parseRetryAfter("Sat, 01 Jan 2000 00:00:10 GMT", 946_684_800_000))
        assertEquals(0.0, parseRetryAfter("?", 0))
        assertEquals(3600.0 + 30, Backoff().delay(40, 1.0, 1e9))
    }

    private class Key(private val der: ByteArray, override val publicText: String) : DeviceKey {
        override fun sign(message: ByteArray) = der
    }

    @Test
    fun `requests are signed as the golden file says`() {
        for (case in vectors("signing.json").maps("cases").filter { it["algorithm"] == "p256" }) {
            val raw = case.text("signature").removePrefix("covey=:").removeSuffix(":").let(Base64.getDecoder()::decode)
            val halves = raw.asList().chunked(32).map { BigInteger(1, it.toByteArray()).toByteArray() }
            val inner = halves.flatMap { listOf<Byte>(2, it.size.toByte()) + it.asList() }.toByteArray()
            val body = unhex(case.text("body"))
            val headers = Signing(Key(byteArrayOf(0x30, inner.size.toByte()) + inner, case.text("keyid")))
                .headers(case.text("method"), case.text("target"), body, case.text("nonce"))
            assertEquals(case.text("content_digest"), headers["Content-Digest"])
            assertEquals(case.text("signature_input"), headers["Signature-Input"])
            assertEquals(case.text("signature"), headers["Signature"])
            val params = case.text("signature_input").removePrefix("covey=")
            assertEquals(case.text("base"), Signing.signatureBase(case.text("method"), case.text("target"), case.text("content_digest"), params))
        }
    }

    @Test
    fun `a key that was made signs what its public text verifies`() {
        val key = SoftwareKey.generate()
        val (private, public) = key.encoded()
        assertEquals(key.publicText, SoftwareKey.of(private, public).publicText)
        assertEquals(87, key.publicText.removePrefix("p256:").length)
        repeat(20) { assertEquals(64, Signing.fixedSignature(key.sign(byteArrayOf(it.toByte()))).size) }
    }

    @Test
    fun `a signed bundle's key is required from the first time on`() {
        val manifest = "a manifest".toByteArray()
        val message = "covey bundle manifest v1\u0000".toByteArray() + manifest
        val (key, other) = SoftwareKey.generate() to SoftwareKey.generate()
        val line = { k: SoftwareKey -> "${k.publicText} ${Base64.getEncoder().encodeToString(k.sign(message))}\n".toByteArray() }
        val ed = KeyPairGenerator.getInstance("Ed25519").generateKeyPair()
        val edText = "ed25519:" + Base64.getUrlEncoder().withoutPadding().encodeToString(ed.public.encoded.takeLast(32).toByteArray())
        val edSignature = Signature.getInstance("Ed25519").run { initSign(ed.private); update(message); sign() }
        assertEquals(true, BundleTrust.verified(edText, manifest, edSignature))
        assertEquals(false, BundleTrust.verified(edText, "another".toByteArray(), edSignature))
        StateFolder.open(folder).use { state ->
            val trust = BundleTrust(state) { notices += it }
            trust.check(manifest, ByteArray(0)) // nothing kept, nothing signed
            assertThrows(BundleException::class.java) { trust.check("another".toByteArray(), line(key)) }
            trust.check(manifest, line(key))
            assertEquals(1, notices.size)
            trust.check(manifest, line(other) + line(key))
            for (bad in listOf(ByteArray(0), line(other))) assertThrows(BundleException::class.java) { trust.check(manifest, bad) }
            for (bad in listOf("x", "p256:AA AA\n", "${key.publicText}\n", "${key.publicText} A\n")) {
                assertThrows(BundleException::class.java) { trust.check(manifest, bad.toByteArray()) }
            }
        }
    }

    @Test
    fun `a nonce is used once, the oldest first, and a stale one is followed by another at once`() {
        val http = SignedHttp(http(), Signing(SoftwareKey.generate()), url)
        val network = Retrying(http, url, clock, Traffic()) { notices += it }
        answers += reply(200, Hello(1, "code", "first-nonce").toBytes())
        answers += reply(401, Refusal("stale_nonce", "sign again", -1.0).toBytes(), "Covey-Nonce" to "second-nonce")
        answers += reply(200, "fine".toByteArray(), "Covey-Nonce" to "third-nonce")
        assertEquals("fine", network.exchange(Request("GET", "/v1/task")).decodeToString())
        assertEquals(listOf("GET /v1/hello ", "GET /v1/task ", "GET /v1/task "), seen)
        answers += reply(401, Refusal("unknown_device", "enrol first", -1.0).toBytes())
        assertThrows(RefusedException::class.java) { network.exchange(Request("GET", "/v1/task")) }
        assertTrue(clock.waits.isEmpty())
    }

    @Test
    fun `an invitation is an address with or without a code`() {
        assertEquals(Invitation("https://a.b", "ABCD-1234"), Invitation.parse(" https://a.b/#ABCD-1234 "))
        assertEquals(Invitation("https://a.b:8443", "X1"), Invitation.parse("https://a.b:8443 X1"))
        assertEquals(Invitation("http://10.0.2.2:8080", ""), Invitation.parse("http://10.0.2.2:8080"))
        assertEquals(Invitation("https://a.b", "Q"), Invitation.parse("covey://join?server=https%3A%2F%2Fa.b&code=Q"))
        for (bad in listOf("a.b", "https://a.b#c d", "covey://join?code=Q", "https://a b c")) {
            assertThrows(UsageException::class.java, { Invitation.parse(bad) }, bad)
        }
    }

    @Test
    fun `what is no server's address is said`() {
        assertEquals("http://a:8080", serverUrl("http://a:8080/"))
        for (bad in listOf("a:8080", "ftp://a", "http://", "http://a?b", "http:// a", "")) {
            assertThrows(UsageException::class.java, { serverUrl(bad) }, bad)
        }
    }

    private val content = ByteArray(200_000) { (it * 31).toByte() }

    private fun manifest(sha: String = sha256(content)): ByteArray = """{"format": 1, "model": "tiny", "task": "causal-lm",
        "batch_size": 2, "seq_len": 8, "labels": [], "precision": "float32", "layout": [{"name": "a", "shape": [4], "kind": "norm", "init": "zeros"}],
        "layout_digest": "${Layout(listOf(Tensor("a", listOf(4), "norm", "zeros"))).digest}",
        "frozen": null, "start": "", "tokenizer": {"kind": "bytes", "path": "", "offset": 3, "vocab_size": 259, "pad_id": 0,
        "eos_id": 1, "bos_id": -1, "unk_id": -1}, "graphs": {"executorch": {"model": "executorch/model.pte"}},
        "parity": {"executorch": {"peak_bytes": 5000000}}, "minimum_client": "0.1.0", "new_field": {"x": [1.5e3, true]},
        "files": {"executorch/model.pte": {"sha256": "$sha", "bytes": ${content.size}, "targets": ["executorch"]},
        "onnx/weights.bin": {"sha256": "${"0".repeat(64)}", "bytes": 9, "targets": ["onnx"]}}}""".toByteArray()

    private fun bundles() = Bundles(Calls(network(), url), http(), folder, "executorch")

    @Test
    fun `a download that was cut goes on where it was`() {
        val data = manifest()
        answers += { exchange -> // half of it, then the line is dead
            exchange.sendResponseHeaders(200, content.size.toLong())
            exchange.responseBody.write(content, 0, 100_000)
            exchange.responseBody.flush()
        }
        answers += { exchange ->
            val from = exchange.requestHeaders.getFirst("Range").removePrefix("bytes=").removeSuffix("-").toInt()
            reply(206, content.copyOfRange(from, content.size), "Content-Range" to "bytes $from-${content.size - 1}/${content.size}")(exchange)
        }
        val reports = ArrayList<Long>()
        val bundle = bundles().fetch(Manifest.fromBytes(data), data) { done, _ -> reports += done }
        assertArrayEquals(content, bundle.path("executorch", "model").readBytes())
        assertEquals(content.size.toLong(), reports.last())
        assertTrue(seen[1].endsWith("bytes=100000-"), seen.toString())
        bundles().fetch(Manifest.fromBytes(data), data) { _, _ -> } // nothing is fetched again
        assertEquals(2, seen.size)
    }

    @Test
    fun `files with another digest are thrown away`() {
        val data = manifest(sha = "a".repeat(64))
        answers += reply(200, content)
        val error = assertThrows(BundleException::class.java) {
            bundles().fetch(Manifest.fromBytes(data), data) { _, _ -> }
        }
        assertTrue("another digest" in error.sentence)
        assertTrue(folder.walk().none { it.name.startsWith("model.pte") })
    }

    @Test
    fun `a server that sends more than it said is cut off`() {
        val data = manifest()
        answers += reply(200, content + content)
        assertThrows(BundleException::class.java) { bundles().fetch(Manifest.fromBytes(data), data) { _, _ -> } }
    }

    @Test
    fun `manifests that lie are refused`() {
        val good = manifest().decodeToString()
        val bad = listOf(
            good.replace("\"format\": 1", "\"format\": 2"), good.replace("executorch/model.pte", "../model.pte"),
            good.replace("\"batch_size\": 2", "\"batch_size\": 0"), good.replace("\"shape\": [4]", "\"shape\": [5]"),
            good.replace("\"kind\": \"norm\"", "\"kind\": \"other\""), good.dropLast(1), "[]", "", "[".repeat(5000),
        )
        for (text in bad) {
            assertThrows(BundleException::class.java, { Manifest.fromBytes(text.toByteArray()) }, text.take(60))
        }
        assertEquals(5_000_000, Manifest.fromBytes(good.toByteArray()).memoryBytes("executorch"))
        assertThrows(BundleException::class.java) { Manifest.fromBytes(good.toByteArray()).filesFor("torch") }
    }

    @Test
    fun `state comes back, damage is moved aside, newer formats are left alone`() {
        val record = ClientRecord("ada", "t", 3, ByteArray(8), history = listOf(Scored(0, 2.0, 4, 1)), sent = mapOf("update" to 5L))
        StateFolder.open(folder).use { state ->
            assertNull(state.load("client", ClientRecord) {})
            state.save("client", record)
            assertArrayEquals(record.toBytes(), state.load("client", ClientRecord) {}!!.toBytes())
            assertThrows(TakenException::class.java) { StateFolder.open(folder) }
            val file = File(folder, "client")
            val whole = file.readBytes()
            file.writeBytes(whole.copyOf().also { it[50] = (it[50] + 1).toByte() })
            val said = ArrayList<String>()
            assertNull(state.load("client", ClientRecord) { said += it })
            assertTrue("damaged" in said.single() && File(folder, "client.damaged").isFile)
            for (cut in listOf(0, 5, 39, whole.size - 1)) {
                file.writeBytes(whole.copyOf(cut))
                assertNull(state.load("client", ClientRecord) {})
            }
            file.writeBytes(whole.copyOf().also { it[7] = 9 })
            assertThrows(UsageException::class.java) { state.load("client", ClientRecord) {} }
            assertTrue(file.isFile)
        }
        StateFolder.open(folder).close()
    }
}
