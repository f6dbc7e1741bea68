package covey.core

import covey.core.client.Kept
import covey.core.client.Vault
import covey.core.client.scrypt
import covey.core.model.Layout
import covey.core.model.Manifest
import covey.core.model.Tensor
import covey.core.model.TokenizerSpec
import covey.core.model.hex
import covey.core.tokens.coderOf
import covey.core.train.Document
import covey.core.train.Examples
import covey.core.train.classOf
import covey.core.train.concatenated
import covey.core.train.datasetOf
import covey.core.train.documentsOf
import covey.core.train.factorwise
import covey.core.train.searchFusion
import covey.core.train.splitDrawn
import covey.core.train.trainingBatch
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test
import java.io.File

/** What a device computes by itself, against Python's: two adapters fused, labelled rows, the vault. */
class DeviceMathTest {
    private val fusion = vectors("fusion.json")
    private val norm = Layout(listOf(Tensor("a", listOf(4), "norm", "zeros")))

    @Suppress("UNCHECKED_CAST")
    private fun reals(value: Any?): List<Double> = (value as List<Number>).map(Number::toDouble)

    @Suppress("UNCHECKED_CAST")
    private fun wholes(value: Any?): List<Int> = (value as List<Long>).map(Long::toInt)

    @Test
    fun `the search for two weights takes Python's points in Python's order`() {
        for (case in fusion.maps("search")) {
            val (a, b, p, q, r) = reals(case["curve"])
            val points = ArrayList<List<Double>>()
            val found = searchFusion { w1, w2 ->
                points += listOf(w1, w2)
                p * (w1 - a) * (w1 - a) + q * (w2 - b) * (w2 - b) + r * (w1 - a) * (w2 - b) + 1.0
            }
            assertEquals((case["points"] as List<*>).map(::reals), points)
            @Suppress("UNCHECKED_CAST")
            val expected = case["found"] as JsonMap
            assertEquals(reals(listOf("shared", "personal", "loss").map(expected::get)), listOf(found.shared, found.personal, found.loss))
            assertEquals(expected.int("evaluations"), found.evaluations)
        }
    }

    @Test
    fun `two adapters are fused bit by bit as Python does`() {
        val (layout, second) = listOf("layout", "second_layout").map { Layout.fromJson(fusion[it]) }
        val (shared, personal) = listOf("shared", "personal").map { floatsFromBits(fusion.texts(it)) }
        for (case in fusion.maps("mixed")) {
            val (w1, w2) = reals(case["weights"])
            assertEquals(case.texts("factorwise"), bits(factorwise(shared, personal, w1, w2)))
            val (adapter, beside) = concatenated(layout, second, shared, personal, w1, w2)
            assertEquals(case.texts("adapter"), bits(adapter))
            assertEquals(case.texts("second"), bits(beside))
        }
        val small = Layout(second.tensors.map { it.copy(shape = if (it.kind == "lora_A") listOf(2, 7) else listOf(5, 2), rank = 2) })
        assertThrows(LayoutException::class.java) { concatenated(layout, small, shared, personal, 1.0, 1.0) }
    }

    @Test
    fun `labelled rows are split and batched as Python does`() {
        val file = vectors("rows.json")
        val labels = file.texts("labels")
        val coder = coderOf(TokenizerSpec("bytes", "", 3, 259, 0, 1, -1), File("."))
        val documents = (file["records"] as List<*>).map { row -> (row as List<*>).let { Document("x", it[0] as String, it[1]!!) } }
        val rows = documents.map { coder.row(it.text, 16) }
        val examples = Examples.rows(rows, IntArray(rows.size) { classOf(documents[it], labels) }, 16, 0)
        val (train, heldout) = splitDrawn(examples.count, 0.3)
        assertEquals(wholes(file["train"]) to wholes(file["heldout"]), train.asList() to heldout.asList())
        file.maps("batches").forEachIndexed { step, expected ->
            val batch = trainingBatch(examples.take(train), 4, 5, step)
            assertEquals((expected["inputs"] as List<*>).flatMap { it as List<*> }, batch.inputs.asList())
            assertEquals(expected["labels"], batch.labels.asList())
        }
        for (case in file.maps("splits")) assertEquals(wholes(case["heldout"]), splitDrawn(case.int("count"), case["share"] as Double).second.asList())
    }

    @Test
    fun `data that does not fit the task is one sentence with its reason`() {
        fun manifest(task: String) = Manifest.fromBytes(
            """{"format": 1, "model": "m", "task": "$task", "batch_size": 2, "seq_len": 8, "labels": ["bad", "good"], "precision": "float32",
            "layout": [{"name": "a", "shape": [4], "kind": "norm", "init": "zeros"}], "layout_digest": "${norm.digest}", "frozen": null,
            "start": "", "tokenizer": {"kind": "bytes", "path": "", "offset": 3, "vocab_size": 259, "pad_id": 0, "eos_id": 1, "bos_id": -1},
            "graphs": {}, "parity": {}, "minimum_client": "0.1.0", "files": {}}""".toByteArray(),
        )
        val classifier = manifest("sequence-classification")
        val good = """{"text": "fine", "label": "good"}""" + "\n\n" + """{"text": "dull", "label": 0}""" + "\r\n"
        val documents = documentsOf(listOf("f" to good), classifier)
        assertEquals(listOf("f, line 1" to "good", "f, line 3" to 0L), documents.map { it.name to it.label })
        val coder = coderOf(classifier.tokenizer!!, File("."))
        assertEquals(1 to 1, datasetOf(documents, coder, classifier, 0.2).run { train.count to heldout.count })
        val wrong = mapOf(
            "plain text" to Reason.DATA_RECORD, """{"text": 3, "label": 0}""" to Reason.DATA_RECORD, """{"text": "a"}""" to Reason.DATA_RECORD,
            """{"text": "a", "label": true}""" to Reason.DATA_RECORD, """{"text": "a", "label": 2}""" to Reason.DATA_LABEL,
            """{"text": "a", "label": "fair"}""" to Reason.DATA_LABEL, " \n" to Reason.DATA_NONE,
        )
        for ((text, reason) in wrong) {
            assertEquals(reason, assertThrows(UsageException::class.java, { documentsOf(listOf("f" to text), classifier) }, text).reason)
        }
        val single = documentsOf(listOf("f" to good.substringBefore('\n')), classifier)
        assertEquals(Reason.DATA_SMALL, assertThrows(UsageException::class.java) { datasetOf(single, coder, classifier, 0.2) }.reason)
        val images = assertThrows(BundleException::class.java) { documentsOf(listOf("f" to good), manifest("image-classification")) }
        assertEquals(Reason.TASK_KIND to listOf("image-classification"), images.reason to images.arguments)
    }

    @Test
    fun `what is short of a batch has labels that do not count`() {
        val examples = Examples.rows(listOf(intArrayOf(5, 6), intArrayOf(7)), intArrayOf(1, 0), 3, 0)
        val batch = examples.batch(intArrayOf(1), 2)
        assertArrayEquals(longArrayOf(7, 0, 0, 7, 0, 0), batch.inputs)
        assertArrayEquals(longArrayOf(0, -100), batch.labels)
    }

    @Test
    fun `scrypt is that of RFC 7914`() {
        val expected = "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
        assertEquals(expected, hex(scrypt("password".toByteArray(), "NaCl".toByteArray(), 1024, 8, 16, 64)))
    }

    @Test
    fun `Python's vaults open, and what was changed does not`() {
        val file = vectors("vault.json")
        for (case in file.maps("cases")) {
            val vault = vault(case)
            val kept = vault.open(unhex(case.text("sealed")))
            assertEquals(case.text("content") to case.int("sequence").toLong(), hex(kept.content) to kept.sequence)
            assertEquals(case.text("address"), vault.address())
        }
        for (case in file.maps("bad")) {
            val error = assertThrows(ServerException::class.java, { vault(case).open(unhex(case.text("sealed"))) }, case.text("name"))
            assertEquals(case.text("error"), error.sentence)
        }
        for (row in file["sizes"] as List<*>) {
            val (content, size) = wholes(row)
            assertEquals(size, Vault.sealedSize(content))
        }
    }

    @Test
    fun `a vault opens again, and a short passphrase is refused`() {
        val vault = Vault("a long passphrase", "task", "me")
        val sealed = vault.seal(Kept(ByteArray(3000) { it.toByte() }, 12))
        assertEquals(Vault.sealedSize(3000), sealed.size)
        val kept = vault.open(sealed)
        assertArrayEquals(ByteArray(3000) { it.toByte() }, kept.content)
        assertEquals(12, kept.sequence)
        assertThrows(UsageException::class.java) { Vault("short", "task", "me") }
    }

    private fun vault(case: JsonMap) = Vault(case.text("passphrase"), case.text("task"), case.text("client"))
}
