package covey.core

import covey.core.codec.Entries
import covey.core.codec.Where
import covey.core.model.Json
import covey.core.model.sha256
import covey.core.model.vectorDigest
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

typealias JsonMap = Map<String, Any?>

/** The repository, above the folder that the tests run in. */
val ROOT: File = generateSequence(File("").absoluteFile) { it.parentFile }.first { File(it, "tests/vectors").isDirectory }

/** A golden file that Python's tests read as well. */
@Suppress("UNCHECKED_CAST")
fun vectors(name: String): JsonMap = Json.parse(File(ROOT, "tests/vectors/$name").readText()) as JsonMap

@Suppress("UNCHECKED_CAST")
fun JsonMap.maps(name: String): List<JsonMap> = getValue(name) as List<JsonMap>

@Suppress("UNCHECKED_CAST")
fun JsonMap.texts(name: String): List<String> = getValue(name) as List<String>

fun JsonMap.text(name: String): String = getValue(name) as String
fun JsonMap.int(name: String): Int = (getValue(name) as Long).toInt()

/** Bytes of a hex text. */
fun unhex(text: String): ByteArray = text.chunked(2).map { it.toInt(16).toByte() }.toByteArray()

/** A payload that stands as `[[hex, what it is], ...]`. */
fun JsonMap.payload(): ByteArray =
    (getValue("payload") as List<*>).flatMap { unhex((it as List<*>)[0] as String).asList() }.toByteArray()

/** Float32 bits as eight hex digits. */
fun bits(values: FloatArray): List<String> = values.map { "%08x".format(it.toRawBits()) }

fun floatsFromBits(bits: List<String>) = FloatArray(bits.size) { Float.fromBits(bits[it].toLong(16).toInt()) }

/** Compares where entries stand and what they are, or the digests of both, bit by bit. */
fun checkEntries(case: JsonMap, entries: Entries) {
    val indices = IntArray(entries.count) { entries.index(it) }
    when {
        "start" in case -> assertEquals(Where.Run(case.int("start"), case.int("stop")), entries.where)
        "indices" in case -> assertEquals((case["indices"] as List<*>).map { (it as Long).toInt() }, indices.asList())
        else -> assertEquals(case.text("indices_sha256"), sha256(littleEndian(indices)))
    }
    if ("values" in case) {
        assertEquals(case.texts("values"), bits(entries.values))
    } else {
        assertEquals(case.text("values_sha256"), vectorDigest(entries.values))
    }
}

private fun littleEndian(numbers: IntArray): ByteArray =
    ByteBuffer.allocate(4 * numbers.size).order(ByteOrder.LITTLE_ENDIAN).also { it.asIntBuffer().put(numbers) }.array()

/** Bit equality, which NaN and minus zero do not fool. */
fun assertSameBits(expected: FloatArray, actual: FloatArray) = assertArrayEquals(
    IntArray(expected.size) { expected[it].toRawBits() }, IntArray(actual.size) { actual[it].toRawBits() },
)
