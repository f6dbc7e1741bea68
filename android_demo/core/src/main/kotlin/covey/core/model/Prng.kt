package covey.core.model

/**
 * SplitMix64 (Steele, Lea, Flood 2014): the protocol's one random generator. Start values, the order of batches and
 * the order of segments are the same bits in Python and here. All numbers are unsigned 64-bit, held in a Long.
 */
object Prng {
    private const val GOLDEN = -0x61c8864680b583ebL // 0x9E3779B97F4A7C15

    /** Output [index] of the stream of [seed]. */
    fun draw(seed: Long, index: Long): Long {
        var z = seed + (index + 1) * GOLDEN
        z = (z xor (z ushr 30)) * -0x40a7b892e31b1a47L
        z = (z xor (z ushr 27)) * -0x6b2fb644ecceee15L
        return z xor (z ushr 31)
    }

    /** The top 24 bits of an output as a float in [0, 1): exact. */
    fun uniform(seed: Long, index: Long): Float = (draw(seed, index) ushr 40).toFloat() * (1f / (1 shl 24))

    /**
     * A seed from numbers ([Int], [Long]) and strings, in order: one stream for each (task seed, round, client) and the
     * like. Strings enter as UTF-8, eight bytes at a time, little-endian, with their length first.
     */
    fun derive(vararg parts: Any): Long = parts.flatMap(::words).fold(0L) { state, word -> draw(state xor word, 0) }

    /** A shuffle of 0 until [count]: the stable order of the first outputs as unsigned numbers. */
    fun permutation(seed: Long, count: Int): IntArray {
        val keys = LongArray(count) { draw(seed, it.toLong()) xor Long.MIN_VALUE }
        return (0 until count).sortedBy { keys[it] }.toIntArray()
    }

    private fun words(part: Any): List<Long> = when (part) {
        is Int -> listOf(part.toLong())
        is Long -> listOf(part)
        is String -> part.toByteArray().let { bytes ->
            listOf(bytes.size.toLong()) + bytes.toList().chunked(8) { piece ->
                piece.foldIndexed(0L) { i, word, byte -> word or ((byte.toLong() and 0xff) shl (8 * i)) }
            }
        }
        else -> throw IllegalArgumentException("a seed is derived from numbers and strings, not from $part")
    }
}
