package covey.core.codec

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.sqrt

/** One frame's values: which codec, its two numbers, and the sections P and Q. */
internal class Coded(val codec: Int, val base: Float, val step: Float, val p: ByteArray, val q: ByteArray)

/**
 * How the values of one frame are written: float32 as they are, float16 of v / base, a sign and a level (base + step m),
 * or one sign bit (+-base). The decoder's arithmetic is float32, one rounding an operation, as in Python.
 */
internal object Values {
    const val F32 = 0
    const val F16 = 1
    const val LEV = 2
    const val SIGN = 3
    private const val MAX_LEVEL = 1 shl 30
    private val NONE = ByteArray(0)

    /** Bytes of a value at most, by mode. */
    val MAX_BYTES = mapOf("f32" to 4.0, "f16" to 2.0, "lev" to 4.5, "sign" to 0.125, "auto" to 4.5)

    /** Finite values, at least one. [error] is the relative L2 error that `lev` and `auto` may make. */
    fun encode(v: FloatArray, mode: String, error: Double): Coded {
        if (mode == "f32") return encodeF32(v)
        if (mode == "f16") return encodeF16(v)
        val mean = v.sumOf { abs(it).toDouble() } / v.size
        val square = v.sumOf { it.toDouble() * it } / v.size
        val signs = mode == "sign" || (mode == "auto" && square - mean * mean <= error * error * square)
        return if (signs) Coded(SIGN, mean.toFloat(), 0f, signBits(v), NONE) else encodeLevels(v, error, sqrt(square))
    }

    private fun encodeF32(v: FloatArray): Coded {
        val out = ByteBuffer.allocate(4 * v.size).order(ByteOrder.LITTLE_ENDIAN)
        out.asFloatBuffer().put(v)
        return Coded(F32, 0f, 0f, out.array(), NONE)
    }

    private fun encodeF16(v: FloatArray): Coded {
        val base = v.maxOf { abs(it) }
        val out = ByteBuffer.allocate(2 * v.size).order(ByteOrder.LITTLE_ENDIAN)
        for (x in v) out.putShort(Half.fromFloat(if (base == 0f) x else x / base).toShort())
        return Coded(F16, base, 0f, out.array(), NONE)
    }

    private fun signBits(v: FloatArray): ByteArray {
        val out = ByteArray((v.size + 7) / 8)
        for (i in v.indices) if (v[i] < 0) out[i shr 3] = (out[i shr 3].toInt() or (1 shl (i and 7))).toByte()
        return out
    }

    /** Levels whose step gives the error; smaller steps until it does. */
    private fun encodeLevels(v: FloatArray, error: Double, rms: Double): Coded {
        val low = v.minOf { abs(it) }
        val high = v.maxOf { abs(it) }
        var step = (sqrt(12.0) * error * rms).toFloat()
        repeat(20) {
            if (!(step > 0) || high.toDouble() + step >= Float.MAX_VALUE) return encodeF32(v) // so that nothing overflows
            val levels = IntArray(v.size) { minOf((abs(v[it]) - low) / step, MAX_LEVEL.toFloat()).toInt() }
            val rest = FloatArray(v.size) { abs(v[it]) - levels[it].toFloat() * step }
            val base = maxOf(0.0, rest.sumOf { it.toDouble() } / rest.size).toFloat()
            val got = sqrt(rest.sumOf { val d = (it - base).toDouble(); d * d } / rest.size)
            if (got <= error * rms) {
                val (p, q) = Tokens.pack(IntArray(v.size) { (levels[it] shl 1) or (if (v[it] < 0) 1 else 0) })
                return Coded(LEV, base, step, p, q)
            }
            step *= (0.95 * error * rms / got).toFloat()
        }
        return encodeF32(v)
    }

    /** [count] finite values; refuses anything else. */
    fun decode(codec: Int, base: Float, step: Float, p: Section, q: Section, count: Int, where: String): FloatArray {
        val v = when (codec) {
            F32 -> sized(p, q, 4L * count, where).buffer().let { b -> FloatArray(count) { b.float } }
            F16 -> sized(p, q, 2L * count, where).buffer()
                .let { b -> FloatArray(count) { Half.toFloat(b.short.toInt() and 0xffff) * base } }
            LEV -> decodeLevels(base, step, p, q, count, where)
            else -> decodeSigns(base, sized(p, q, (count + 7L) / 8, where), count, where)
        }
        for (x in v) if (!x.isFinite()) refuse("$where holds the value ${shown(x)}; only finite numbers are accepted")
        return v
    }

    private fun decodeLevels(base: Float, step: Float, p: Section, q: Section, count: Int, where: String): FloatArray {
        val z = Tokens.unpack(p, q, count, "the levels of $where")
        return FloatArray(count) {
            val scaled = (z[it] ushr 1).toFloat() * step
            val magnitude = scaled + base
            if (z[it] and 1 == 1) -magnitude else magnitude
        }
    }

    private fun decodeSigns(base: Float, p: Section, count: Int, where: String): FloatArray {
        if (count % 8 != 0 && (p[p.size - 1] ushr (count % 8)) != 0) {
            refuse("the signs of $where end with padding bits that are not zero")
        }
        return FloatArray(count) { if ((p[it shr 3] ushr (it and 7)) and 1 == 1) -base else base }
    }

    private fun sized(p: Section, q: Section, length: Long, where: String): Section {
        if (p.size.toLong() != length || q.size != 0) {
            refuse("$where needs $length and 0 bytes of values, ${p.size} and ${q.size} were sent")
        }
        return p
    }
}
