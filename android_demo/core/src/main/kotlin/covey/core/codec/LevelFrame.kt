package covey.core.codec

import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.ln
import kotlin.math.max

/** One frame of LVL1 on the way out: values, their levels, the base that fits them, and the squared error left. */
internal class LevelFrame(val v: FloatArray, val m: IntArray, val base: Float, val lost: Double) {
    /** The shorter of the two encodings that promise to be. */
    fun packed(): ByteArray = bestTops().map(::packedWith).minBy { it.size }

    private fun packedWith(top: Int): ByteArray {
        val none = ByteArray(0)
        var p = none
        var q = none
        var r = none
        if (top > 0) {
            p = Tokens.deflate(Digits.join(IntArray(v.size) { digit(v[it], minOf(m[it], top)) }, top))
        }
        if (m.any { it > top }) {
            val packed = Tokens.pack(m.filter { it >= top }.map { it - top }.toIntArray())
            q = packed.first
            r = packed.second
        }
        return Header(24).u32(top).u32(p.size).u32(q.size).u32(r.size).f32(base).sealed(p, q, r)
    }

    private fun digit(x: Float, level: Int): Int = if (level == 0) 0 else if (x > 0) 2 * level - 1 else 2 * level

    /** The two tops that should take the fewest bits; 0 if all levels are. */
    private fun bestTops(): List<Int> {
        val highest = m.max()
        if (highest == 0) return listOf(0)
        val counts = LongArray(minOf(highest, Lvl1.MAX_TOP + 1) + 1)
        for (level in m) counts[minOf(level, Lvl1.MAX_TOP + 1)]++
        val enough = TOPS.firstOrNull { it >= counts.size - 1 } ?: Lvl1.MAX_TOP
        return TOPS.filter { it <= enough }.sortedBy { bits(counts, it) }.take(2)
    }

    /** About how many bits a frame with these counts of levels takes; see the Python encoder for the reasons. */
    private fun bits(counts: LongArray, top: Int): Double {
        val digits = counts.copyOf(top + 1)
        digits[top] = counts.drop(top).sum()
        val signs = digits.drop(1).sum()
        val excess = if (counts.size > top + 1) counts.copyOfRange(top, counts.size) else LongArray(0)
        val perByte = Digits.perByte(top)
        val symbols = digits.sum().toDouble() / perByte
        val letters = minOf(digits.size * 2, 2 * top + 1)
        val table = 5 * Math.pow(letters.toDouble(), perByte.toDouble()) * ceil(symbols / 16_384)
        return max(entropy(digits) + signs, symbols) + 0.06 * symbols + table + max(entropy(excess), excess.sum().toDouble())
    }

    private fun entropy(counts: LongArray): Double {
        val total = counts.sum().toDouble()
        return counts.filter { it > 0 }.sumOf { it * ln(total / it) / ln(2.0) }
    }

    companion object {
        private val TOPS = listOf(1, 2, 3, 7, 15, 31, 127)
        private const val ROUND = 0.4f // instead of 0.5: a wider zero saves more bits than its error costs

        /** Nearest levels and the best base for them, computed in units of the step. */
        fun of(v: FloatArray, step: Float): LevelFrame {
            val m = IntArray(v.size) { (abs(v[it]) / step + ROUND).toInt() }
            var sum = 0.0
            var some = 0
            for (i in v.indices) if (m[i] > 0) { sum += abs(v[i]) / step - m[i]; some++ }
            val base = (sum / max(some, 1)).toFloat()
            var lost = 0.0
            for (i in v.indices) {
                val rest = (abs(v[i]) / step - m[i] - if (m[i] > 0) base else 0f).toDouble()
                lost += rest * rest
            }
            return LevelFrame(v, m, base * step, lost * step * step)
        }
    }
}

/** Digits of base 2 top + 1, as many to a byte as fit. */
internal object Digits {
    /** 5 for top 1, 3 for 2, 2 for 3 to 7, else 1. */
    fun perByte(top: Int): Int = when (top) {
        1 -> 5
        2 -> 3
        in 3..7 -> 2
        else -> 1
    }

    /** Digits to bytes, the first digit least; missing ones at the end are 0. */
    fun join(digits: IntArray, top: Int): ByteArray {
        val perByte = perByte(top)
        return ByteArray((digits.size + perByte - 1) / perByte) { symbol ->
            (perByte - 1 downTo 0).fold(0) { sum, i -> sum * (2 * top + 1) + digits.getOrElse(symbol * perByte + i) { 0 } }.toByte()
        }
    }

    /** [count] digits from the deflated symbols. */
    fun split(p: Section, count: Int, top: Int, where: String): IntArray {
        val perByte = perByte(top)
        val base = 2 * top + 1
        val letters = (1..perByte).fold(1) { product, _ -> product * base }
        val symbols = Tokens.inflate(p, (count + perByte - 1) / perByte, "the levels of $where")
        val highest = symbols.maxOfOrNull { it.toInt() and 0xff } ?: 0
        if (highest >= letters) refuse("the levels of $where hold the symbol $highest; the highest is ${letters - 1}")
        val out = IntArray(symbols.size * perByte)
        for (i in symbols.indices) {
            var rest = symbols[i].toInt() and 0xff
            repeat(perByte) { out[i * perByte + it] = rest % base; rest /= base }
        }
        if ((count until out.size).any { out[it] != 0 }) {
            refuse("the levels of $where end with padding digits that are not zero")
        }
        return out.copyOf(count)
    }
}
