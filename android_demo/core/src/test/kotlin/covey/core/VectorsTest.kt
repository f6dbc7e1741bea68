package covey.core

import covey.core.codec.Aff1
import covey.core.codec.Entries
import covey.core.codec.Lvl1
import covey.core.codec.Spk1
import covey.core.codec.codecFromSpec
import covey.core.model.Layout
import covey.core.model.Prng
import covey.core.model.hex
import covey.core.model.vectorDigest
import covey.core.wire.Adapter
import covey.core.wire.Assignment
import covey.core.wire.CheckIn
import covey.core.wire.Enroll
import covey.core.wire.Enrolled
import covey.core.wire.Evaluation
import covey.core.wire.Form
import covey.core.wire.Hello
import covey.core.wire.Message
import covey.core.wire.Receipt
import covey.core.wire.Refusal
import covey.core.wire.SealedVault
import covey.core.wire.StageSpec
import covey.core.wire.Task
import covey.core.wire.Update
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import java.io.File

/** The golden files of tests/vectors, which Python's tests/shared/test_vectors.py reads as well. */
class VectorsTest {
    private val decoders = mapOf<String, (ByteArray, Int, Int, Int) -> Entries>("spk1" to Spk1::decode, "lvl1" to Lvl1::decode)

    private fun each(kind: String, act: (JsonMap, (ByteArray, Int, Int, Int) -> Entries) -> Unit): List<DynamicTest> =
        decoders.flatMap { (form, decode) ->
            vectors("$form/$kind.json").maps("cases").map { case -> dynamicTest("$form ${case["name"]}") { act(case, decode) } }
        }

    @TestFactory
    fun `good payloads decode to the same bits`() = each("good") { case, decode ->
        checkEntries(case, decode(case.payload(), case.int("size"), case.int("layout_id"), case.int("size")))
    }

    @TestFactory
    fun `bad payloads are refused with the same sentence`() = each("bad") { case, decode ->
        val error = assertThrows(PayloadException::class.java) {
            decode(case.payload(), case.int("size"), case.int("layout_id"), case.int("max_entries"))
        }
        assertEquals(case.text("error"), error.sentence)
        assertEquals(case.int("status"), error.status)
    }

    @TestFactory
    fun `every cut is refused`() = each("good") { case, decode ->
        val payload = case.payload()
        val size = case.int("size")
        for (length in 0 until minOf(payload.size, 400)) {
            assertThrows(PayloadException::class.java) { decode(payload.copyOf(length), size, case.int("layout_id"), size) }
        }
        assertThrows(PayloadException::class.java) { decode(payload + 0, size, case.int("layout_id"), size) }
    }

    @TestFactory
    fun chains() = vectors("codec.json").let { golden ->
        val layout = Layout.fromJson(golden["layout"])
        golden.maps("cases").map { case ->
            dynamicTest(case.maps("spec").joinToString(" ") { it.text("name") }) {
                checkEntries(case, codecFromSpec(spec(case), layout).decode(parts(case)))
            }
        } + golden.maps("bad").map { case ->
            dynamicTest(case.text("name")) {
                val codec = codecFromSpec(spec(case), layout)
                val error = assertThrows(PayloadException::class.java) { codec.decode(parts(case)) }
                assertEquals(case.text("error"), error.sentence)
                assertEquals(case.int("status"), error.status)
            }
        }
    }

    @TestFactory
    fun `rows in a few bits`() = vectors("aff1.json").let { golden ->
        val layout = Layout.fromJson(golden["layout"])
        golden.maps("cases").map { case ->
            dynamicTest(case.text("name")) {
                assertEquals(case.texts("values"), bits(Aff1.decode(unhex(case.text("payload")), layout, case.int("bits"))))
            }
        } + golden.maps("bad").map { case ->
            dynamicTest(case.text("name")) {
                val error = assertThrows(PayloadException::class.java) {
                    Aff1.decode(unhex(case.text("payload")), layout, case.int("bits"))
                }
                assertEquals(case.text("error"), error.sentence)
            }
        }
    }

    @Test
    fun `random numbers`() {
        val golden = vectors("prng.json")
        for (case in golden.maps("draws")) {
            val outputs = case.texts("outputs")
            val drawn = outputs.indices.map { Prng.draw(seed(case), case.int("first").toLong() + it) }
            assertEquals(outputs, drawn.map { "%016x".format(it) })
        }
        for (case in golden.maps("uniform")) {
            val values = case.texts("values")
            assertEquals(values, bits(FloatArray(values.size) { Prng.uniform(seed(case), it.toLong()) }))
        }
        for (case in golden.maps("derive")) {
            assertEquals(case.text("seed"), "%016x".format(Prng.derive(*(case["parts"] as List<*>).map { it!! }.toTypedArray())))
        }
        for (case in golden.maps("permutation")) {
            val order = (case["order"] as List<*>).map { (it as Long).toInt() }
            assertEquals(order, Prng.permutation(seed(case), case.int("count")).asList())
        }
    }

    @Test
    fun `layout and its start`() {
        val golden = vectors("start.json")
        val layout = Layout.fromJson(golden["layout"])
        assertEquals(golden.text("canonical"), layout.canonical)
        assertEquals(golden.text("digest"), layout.digest)
        assertEquals(golden.int("short_id"), layout.shortId)
        for (case in golden.maps("starts")) {
            val start = layout.start(seed(case), floatsFromBits(golden.texts("stored")))
            assertEquals(case.texts("start"), bits(start))
            assertEquals(case.text("vector_digest"), vectorDigest(start))
        }
    }

    @TestFactory
    fun messages() = File(ROOT, "tests/vectors/messages").listFiles()!!.sorted().filter { it.name != "bad.json" }.map { file ->
        dynamicTest(file.name) {
            val golden = vectors("messages/${file.name}")
            val form = FORMS[golden.text("type")]
            assertTrue(form != null, "this client knows no message ${golden.text("type")}")
            val message = form!!.fromBytes(unhex(golden.text("bytes")))
            assertEquals(golden.text("bytes"), hex(message.toBytes()))
            assertEquals(golden["fields"], plain(message))
        }
    }

    @TestFactory
    fun `bad messages are refused`() = vectors("messages/bad.json").maps("cases").map { case ->
        dynamicTest(case.text("name")) {
            val form = FORMS.getValue(case.text("type"))
            val error = assertThrows(MessageException::class.java) { form.fromBytes(unhex(case.text("bytes"))) }
            // What the msgpack reader itself refuses is put in other words; where both know the field, in the same.
            if (!case.text("error").startsWith("not a valid")) assertEquals(case.text("error"), error.sentence)
        }
    }

    private fun seed(case: JsonMap): Long = case.text("seed").toBigInteger().toLong()

    private fun parts(case: JsonMap): Map<String, ByteArray> = (case["parts"] as Map<*, *>).entries
        .associate { (name, part) -> name as String to unhex(part as String) }

    @Suppress("UNCHECKED_CAST")
    private fun spec(case: JsonMap): List<StageSpec> = case.maps("spec").map { StageSpec(it.text("name"), it["args"] as Map<String, Any>) }

    /** A message as the golden files write it. */
    private fun plain(value: Any?): Any? = when (value) {
        is Message -> value.form.fields.map { it.first }.zip(value.fields().map(::plain)).toMap()
        is List<*> -> value.map(::plain)
        is Map<*, *> -> value.mapValues { plain(it.value) }
        is ByteArray -> mapOf("hex" to hex(value))
        is Int -> value.toLong()
        else -> value
    }

    companion object {
        /** Every message that this client knows, by its name in the protocol. */
        val FORMS: Map<String, Form<*>> = listOf(
            Task, CheckIn, Assignment, Adapter, Update, Receipt, Evaluation, Refusal, Hello, Enroll, Enrolled, SealedVault,
        ).associateBy { it.name }
    }
}
