package covey.core.tokens

import covey.core.client.fromBase64
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.regex.Pattern

/**
 * The `Precompiled` normalizer: SentencePiece's table of replacements, a trie in a double array
 * (https://github.com/s-yata/darts-clone) before the replacements, each ended by a zero byte. A grapheme of less than six
 * bytes is looked up whole and then character by character, and the shortest key that begins it counts.
 */
internal class CharsMap private constructor(private val units: IntArray, private val replacements: ByteArray) {
    fun apply(text: String): String {
        val out = StringBuilder(text.length)
        val grapheme = GRAPHEME.matcher(text)
        while (grapheme.find()) {
            val cluster = grapheme.group()
            val whole = cluster.toByteArray().takeIf { it.size < 6 }?.let(::replacement)
            out.append(whole ?: replacePoints(cluster) { replacement(string(it).toByteArray()) })
        }
        return out.toString()
    }

    private fun replacement(key: ByteArray): String? {
        val from = leaf(key)
        if (from < 0 || from > replacements.size) return null
        var to = from
        while (to < replacements.size && replacements[to] != 0.toByte()) to++
        return String(replacements, from, to - from, Charsets.UTF_8)
    }

    /** Where the replacement of the shortest key that begins [key] stands, or -1. */
    private fun leaf(key: ByteArray): Int {
        var at = offset(units[0])
        for (byte in key) {
            val c = byte.toInt() and 0xff
            at = at xor c
            val unit = units.getOrNull(at) ?: return -1
            if (c == 0 || unit and LABEL != c) return -1
            at = at xor offset(unit)
            if (unit shr 8 and 1 == 1) return (units.getOrNull(at) ?: return -1) and Int.MAX_VALUE
        }
        return -1
    }

    private fun offset(unit: Int): Int = (unit ushr 10) shl ((unit and (1 shl 9)) ushr 6)

    companion object {
        private val GRAPHEME = Pattern.compile("\\X")
        private const val LABEL = Int.MIN_VALUE or 0xff

        /** The table in a file. */
        fun of(part: Component): CharsMap {
            val bytes = fromBase64(part.text("precompiled_charsmap")) ?: part.damaged("precompiled_charsmap")
            val data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
            val length = if (bytes.size >= 8) data.int else 0
            if (length < 4 || length % 4 != 0 || length > bytes.size - 4) part.damaged("precompiled_charsmap")
            val units = IntArray(length / 4) { data.int }
            return CharsMap(units, bytes.copyOfRange(4 + length, bytes.size))
        }
    }
}
