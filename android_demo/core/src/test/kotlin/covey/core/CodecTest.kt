package covey.core

import covey.core.codec.Entries
import covey.core.codec.Half
import covey.core.codec.Lvl1
import covey.core.codec.Spk1
import covey.core.codec.Tokens
import covey.core.codec.Where
import covey.core.codec.codecFromSpec
import covey.core.codec.topk
import covey.core.model.Layout
import covey.core.model.Tensor
import covey.core.wire.CodecMemory
import covey.core.wire.StageSpec
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.util.Random
import kotlin.math.abs
import kotlin.math.sqrt

/** What the encoders make, against what the decoders read: round trips, errors asked for, ties, hostile bytes. */
class CodecTest {
    private val layout = Layout(
        listOf(
            Tensor("a.lora_A.weight", listOf(64, 1000), "lora_A", "kaiming_uniform", rank = 64),
            Tensor("a.lora_B.weight", listOf(500, 64), "lora_B", "zeros", rank = 64),
            Tensor("head", listOf(4001), "head", "zeros"),
        ),
    )
    private val vector = Random(1).let { random -> FloatArray(layout.size) { (random.nextGaussian() * 1e-3).toFloat() } }

    private fun error(wanted: FloatArray, got: FloatArray): Double {
        val lost = wanted.indices.sumOf { val d = (wanted[it] - got[it]).toDouble(); d * d }
        return sqrt(lost / wanted.sumOf { it.toDouble() * it })
    }

    private fun spec(vararg stages: Pair<String, Map<String, Any>>) = stages.map { StageSpec(it.first, it.second) }

    @Test
    fun `tokens are those of the table in docs`() {
        val numbers = longArrayOf(15, 16, 17, 31, 32, 255, 1000, 65_535, 65_536, 4_294_967_295)
        val tokens = intArrayOf(15, 16, 16, 23, 24, 47, 63, 111, 112, 239)
        assertArrayEquals(tokens, IntArray(numbers.size) { Tokens.token(numbers[it].toInt()) })
        val (packed, raw) = Tokens.pack(IntArray(numbers.size) { numbers[it].toInt() })
        val section = { bytes: ByteArray -> covey.core.codec.Section(bytes, 0, bytes.size) }
        assertEquals(numbers.toList(), Tokens.unpack(section(packed), section(raw), numbers.size, "x").map { it.toLong() and 0xffffffffL })
    }

    @Test
    fun `half floats round to nearest even and back`() {
        for (bits in 0..0xffff) {
            val x = Half.toFloat(bits)
            if (x.isFinite()) assertEquals(bits, Half.fromFloat(x), "$bits")
        }
        assertEquals(0x3c00, Half.fromFloat(1f + 1f / 2048)) // a tie goes to the even one
        assertEquals(0x3c02, Half.fromFloat(1f + 3f / 2048))
        assertEquals(0x0001, Half.fromFloat(4.5e-8f))
        assertEquals(0, Half.fromFloat(2.0e-8f))
    }

    @Test
    fun `topk takes the largest, and of equal ones the first`() {
        assertArrayEquals(intArrayOf(1, 2, 3), topk(floatArrayOf(1f, -5f, 2f, 5f, -2f), 3))
        assertArrayEquals(intArrayOf(0, 1), topk(FloatArray(5), 2))
        val random = Random(2)
        repeat(20) {
            val x = FloatArray(5000) { (random.nextInt(40) - 20) * 0.37f }
            val k = random.nextInt(5001)
            val expected = x.indices.sortedWith(compareByDescending<Int> { i -> abs(x[i]) }.thenBy { i -> i }).take(k).sorted()
            assertEquals(expected, topk(x, k).asList())
        }
        assertThrows(CodecException::class.java) { topk(floatArrayOf(1f, Float.NaN), 1) }
        assertThrows(CodecException::class.java) { topk(floatArrayOf(1f), 2) }
    }

    @Test
    fun `every value codec keeps to its error`() {
        val where = topk(vector, vector.size / 16)
        val entries = Entries(vector.size, Where.Indices(where), FloatArray(where.size) { vector[where[it]] })
        for ((mode, bound) in listOf("f32" to 0.0, "f16" to 1e-3, "lev" to 0.1, "auto" to 0.1, "sign" to 0.5)) {
            val payload = Spk1.encode(entries, 7, mode)
            val back = Spk1.decode(payload, vector.size, 7)
            assertArrayEquals(where, IntArray(back.count) { back.index(it) })
            assertTrue(error(entries.values, back.values) <= bound, mode)
            assertTrue(payload.size <= Spk1.maxBytes(entries.count, vector.size, mode))
        }
    }

    @Test
    fun `levels keep to their error on runs of any length`() {
        for (wanted in listOf(0.7, 0.3, 0.05)) {
            for (run in listOf(0 to vector.size, 17 to 18, 100 to 65_636)) {
                val entries = Entries(vector.size, Where.Run(run.first, run.second), vector.copyOfRange(run.first, run.second))
                val payload = Lvl1.encode(entries, 7, wanted)
                val back = Lvl1.decode(payload, vector.size, 7)
                assertEquals(entries.where, back.where)
                assertTrue(error(entries.values, back.values) <= wanted * 1.0001, "$wanted $run")
                assertTrue(payload.size <= Lvl1.maxBytes(entries.count))
            }
        }
        val zeros = Lvl1.decode(Lvl1.encode(Entries.all(FloatArray(9)), 7, 0.3), 9, 7)
        assertSameBits(FloatArray(9), zeros.values)
        assertThrows(CodecException::class.java) { Lvl1.encode(Entries.all(FloatArray(9) { 1e37f }), 7, 0.3) }
    }

    @Test
    fun `chains of the presets and of segments`() {
        val sign = codecFromSpec(spec("tensor_scale" to emptyMap(), "pack" to mapOf("values" to "sign")), layout)
        val (parts, _) = sign.encode(vector, sign.init(0))
        assertTrue(parts.values.sumOf { it.size } < vector.size / 8 + 400)
        assertTrue(error(vector, sign.decode(parts).dense()) < 0.61)

        val segments = codecFromSpec(spec("segment" to mapOf("count" to 3L), "levels" to mapOf("error" to 0.2)), layout)
        var memory = segments.init(5)
        val seen = BooleanArray(vector.size)
        repeat(3) {
            val (sent, after) = segments.encode(vector, memory)
            val entries = segments.decode(sent)
            for (i in 0 until entries.count) seen[entries.index(i)] = true
            memory = after
        }
        assertTrue(seen.all { it })
    }

    @Test
    fun `rows in bits are within half a step`() {
        for (bits in listOf(2, 4, 8)) {
            val codec = codecFromSpec(spec("affine" to mapOf("bits" to bits.toLong())), layout)
            val back = codec.decode(codec.encode(vector, codec.init(0)).first).dense()
            val step = 10e-3f / ((1 shl bits) - 1)
            assertTrue(vector.indices.all { abs(vector[it] - back[it]) <= step }, "$bits")
            assertSameBits(vector.copyOfRange(96_000, 100_001), back.copyOfRange(96_000, 100_001)) // one dimension: exact
        }
    }

    @Test
    fun `importance weighs with the other factor, and adaptive takes segments where the change is flat`() {
        val weighed = codecFromSpec(spec("importance" to mapOf("density" to 0.1), "pack" to mapOf("values" to "f32")), layout)
        val adapter = FloatArray(layout.size).also { a -> for (i in 0 until 1000) a[5 * 1000 + i] = 1f } // row 5 of A
        val sent = weighed.decode(weighed.encode(FloatArray(layout.size) { 1e-3f }, weighed.init(0), adapter).first)
        val inB = (0 until sent.count).map { sent.index(it) }.filter { it in 64_000 until 96_000 }
        assertEquals(500, inB.size)
        assertTrue(inB.all { (it - 64_000) % 64 == 5 })

        val pack = "pack" to mapOf("values" to "auto", "error" to 0.65)
        val adaptive = codecFromSpec(spec("adaptive" to mapOf("density" to 0.1), "tensor_scale" to emptyMap(), pack), layout)
        val flat = FloatArray(layout.size) { if (it % 3 == 0) 1e-3f else -1e-3f }
        assertTrue(adaptive.decode(adaptive.encode(flat, adaptive.init(0)).first).where is Where.Run)
        assertTrue(adaptive.decode(adaptive.encode(vector, adaptive.init(0)).first).where is Where.Indices)
    }

    @Test
    fun `error feedback sends everything in the end`() {
        val codec = codecFromSpec(spec("topk" to mapOf("density" to 0.25), "pack" to mapOf("values" to "f32")), layout, errorFeedback = true)
        val sum = FloatArray(vector.size)
        var memory = codec.init(0)
        repeat(6) { round ->
            val (parts, after) = codec.encode(if (round == 0) vector else FloatArray(vector.size), memory)
            codec.decode(parts).addTo(sum)
            memory = CodecMemory.fromBytes(after.toBytes()) // as it comes back from the disk
        }
        assertTrue(error(vector, sum) < 1e-6)
    }

    @Test
    fun `what a codec cannot do is said before anything is encoded`() {
        val bad = listOf(
            spec("topk" to mapOf("density" to 0.5)), spec("pack" to mapOf("values" to "f8")), spec("nothing" to emptyMap()),
            spec("topk" to mapOf("density" to 1.5), "pack" to emptyMap()), spec("topk" to emptyMap(), "pack" to emptyMap()),
            spec("pack" to mapOf("extra" to 1L)), spec("topk" to mapOf("density" to 0.5), "levels" to mapOf("error" to 0.1)),
            spec("pack" to emptyMap(), "pack" to emptyMap()), spec("segment" to mapOf("count" to 0L), "pack" to emptyMap()), emptyList(),
        )
        for (stages in bad) assertThrows(CodecException::class.java, { codecFromSpec(stages, layout) }, stages.toString())
        val codec = codecFromSpec(spec("pack" to emptyMap()), layout)
        assertThrows(CodecException::class.java) { codec.encode(FloatArray(3), codec.init(0)) }
        assertThrows(CodecException::class.java) { codec.encode(vector.copyOf().also { it[5] = Float.NaN }, codec.init(0)) }
    }

    @Test
    fun `damaged payloads are refused or mean something, and nothing else happens`() {
        val random = Random(3)
        val entries = Entries.all(vector.copyOf(3000))
        val where = topk(entries.values, 300)
        val sparse = Entries(3000, Where.Indices(where), FloatArray(300) { vector[where[it]] })
        val payloads = listOf("f32", "f16", "lev", "sign").map { Spk1.encode(sparse, 7, it) to Spk1::decode } +
            (Lvl1.encode(entries, 7, 0.3) to Lvl1::decode)
        repeat(4000) {
            val (payload, decode) = payloads[random.nextInt(payloads.size)]
            val hurt = payload.copyOf(if (random.nextInt(4) == 0) random.nextInt(payload.size) else payload.size)
            repeat(random.nextInt(4)) { if (hurt.isNotEmpty()) hurt[random.nextInt(hurt.size)] = random.nextInt(256).toByte() }
            if (random.nextBoolean()) reseal(hurt, if (decode == Lvl1::decode) 32 else 24, if (decode == Lvl1::decode) 24 else 40)
            try {
                val back = decode(hurt, 3000, 7, 3000)
                assertTrue(back.values.all { it.isFinite() } && (0 until back.count).all { back.index(it) < 3000 })
            } catch (_: PayloadException) {
            }
        }
    }

    /** Makes the checksums right again, so that what lies behind them is reached. */
    private fun reseal(payload: ByteArray, header: Int, frame: Int) {
        if (payload.size < header + frame) return
        val put = { at: Int, crc: Long -> for (i in 0..3) payload[at + i] = (crc shr (8 * i)).toByte() }
        put(header - 4, covey.core.codec.crc(payload, 0, header - 4))
        val crc = java.util.zip.CRC32()
        crc.update(payload, header, frame - 4)
        crc.update(payload, header + frame, payload.size - header - frame)
        put(header + frame - 4, crc.value)
    }
}
