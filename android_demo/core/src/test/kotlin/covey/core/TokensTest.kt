package covey.core

import covey.core.model.Json
import covey.core.model.TokenizerSpec
import covey.core.tokens.CodePoints
import covey.core.tokens.Coder
import covey.core.tokens.TokenizerFile
import covey.core.tokens.coderOf
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir
import java.io.File
import kotlin.random.Random

/** Tokenizers of every family against the ids that Python's `tokenizers` gives: the files of tests/vectors/tokenizers. */
class TokensTest {
    private val texts = vectors("tokenizers/texts.json").texts("texts")
    private val plain = TokenizerSpec("tokenizers", "tokenizer.json", 0, 1 shl 20, 0, -1, -1)

    private fun coder(tokenizer: Any?, spec: TokenizerSpec = plain): Coder = TokenizerFile.parse(written(tokenizer), spec)

    @TestFactory
    fun `a family gives Python's ids`(): List<DynamicTest> {
        val names = File(ROOT, "tests/vectors/tokenizers").list()!!.filter { it !in setOf("texts.json", "bad.json") }.sorted()
        assertTrue(names.size > 15)
        return names.map { name -> DynamicTest.dynamicTest(name) { check(vectors("tokenizers/$name")) } }
    }

    @Suppress("UNCHECKED_CAST")
    private fun check(family: JsonMap) {
        val coder = coder(family["tokenizer"])
        val expected = { field: String -> (family.getValue(field) as List<List<Long>>).map { ids -> ids.map(Long::toInt) } }
        texts.forEachIndexed { i, text ->
            assertEquals(expected("documents")[i], coder.document(text).asList(), "document '$text'")
            assertEquals(expected("rows")[i], coder.row(text, family.int("limit")).asList(), "row '$text'")
        }
    }

    @TestFactory
    fun `a component that is not known is refused by name`(): List<DynamicTest> = vectors("tokenizers/bad.json").maps("cases").map { case ->
        DynamicTest.dynamicTest(case.text("name")) {
            val error = assertThrows(BundleException::class.java) { coder(case["tokenizer"]) }
            assertTrue(case.text("names") in error.sentence, error.sentence)
        }
    }

    @TestFactory
    fun `a damaged file is refused in a sentence or read`(): List<DynamicTest> = listOf("bert-uncased", "clip", "llama3", "mistral", "t5", "words").map { name ->
        DynamicTest.dynamicTest(name) {
            val whole = vectors("tokenizers/$name.json")["tokenizer"]
            val random = Random(7)
            var refused = 0
            repeat(300) {
                val damaged = damaged(whole, random)
                try {
                    val coder = TokenizerFile.parse(written(damaged), plain)
                    texts.take(12).forEach { coder.row(coder.document(it).size.toString() + it, 9) }
                } catch (_: BundleException) {
                    refused++
                }
            }
            assertTrue(refused > 100, "$refused")
        }
    }

    /** The same with one value, somewhere, in the place of another. */
    private fun damaged(value: Any?, random: Random): Any? {
        val at = random.nextInt(8)
        return when {
            value is Map<*, *> && value.isNotEmpty() && at > 0 -> value.keys.random(random).let { key -> value + (key to damaged(value[key], random)) }
            value is List<*> && value.isNotEmpty() && at > 0 -> value.indices.random(random).let { i -> value.mapIndexed { j, v -> if (i == j) damaged(v, random) else v } }
            else -> listOf(null, "", "x", -1L, 7L, 1L shl 40, 0.5, true, emptyList<Any>(), emptyMap<String, Any>(), listOf("a"), mapOf("type" to "x")).random(random)
        }
    }

    @Test
    fun `documents stand between their marks and ids beyond the model are refused`() {
        val tokenizer = vectors("tokenizers/gpt2.json")["tokenizer"]
        val ids = coder(tokenizer, plain.copy(bosId = 7, eosId = 9)).document("ab")
        assertEquals(7 to 9, ids.first() to ids.last())
        val error = assertThrows(BundleException::class.java) { coder(tokenizer, plain.copy(vocabSize = 10)).document("ab") }
        assertTrue("export the bundle again" in error.sentence)
    }

    @Test
    fun `a long text without a space takes no time`() {
        val coder = coder(vectors("tokenizers/llama2.json")["tokenizer"])
        assertTrue(coder.document("abcdefgh".repeat(50_000)).size > 1000)
    }

    @Test
    fun `a row of bytes keeps its end mark`() {
        val bytes = coderOf(TokenizerSpec("bytes", "", 3, 259, 0, 1, -1), File("."))
        assertArrayEquals(intArrayOf(75, 108, 1), bytes.document("Hi"))
        assertArrayEquals(intArrayOf(75, 1), bytes.row("Hi", 2))
        assertThrows(BundleException::class.java) { coderOf(plain.copy(kind = "letters"), File(".")) }
    }

    @Test
    fun `a file that is not there or too long is one sentence`(@TempDir folder: File) {
        val error = assertThrows(BundleException::class.java) { coderOf(plain, folder) }
        assertTrue("cannot be read" in error.sentence)
        File(folder, "tokenizer.json").writeText("[]")
        assertThrows(BundleException::class.java) { coderOf(plain, folder) }
    }

    @Test
    fun `sets of code points hold their bounds`() {
        val set = CodePoints("5 8-a 10ffff")
        assertEquals(listOf(5, 8, 9, 10, 0x10ffff), listOf(0, 4, 5, 6, 7, 8, 9, 10, 11, 0x10fffe, 0x10ffff).filter { it in set })
    }
}

/** JSON of what [Json] read. */
fun written(value: Any?): String = when (value) {
    is Map<*, *> -> value.entries.joinToString(",", "{", "}") { (k, v) -> "${written(k)}:${written(v)}" }
    is List<*> -> value.joinToString(",", "[", "]", transform = ::written)
    is String -> value.map { if (it < ' ' || it == '"' || it == '\\') "\\u%04x".format(it.code) else "$it" }.joinToString("", "\"", "\"")
    else -> "$value"
}
