package covey.core.codec

/** IEEE 754 binary16, which neither Java 17 nor every Android has. */
internal object Half {
    /** The float of 16 bits; exact. */
    fun toFloat(bits: Int): Float {
        val sign = (bits and 0x8000) shl 16
        val exponent = (bits shr 10) and 31
        val fraction = bits and 0x3ff
        return when (exponent) {
            0 -> (fraction * SUBNORMAL).let { if (sign == 0) it else -it }
            31 -> Float.fromBits(sign or 0x7f800000 or (fraction shl 13))
            else -> Float.fromBits(sign or ((exponent + 112) shl 23) or (fraction shl 13))
        }
    }

    /** The nearest 16 bits, ties to even; magnitudes up to 65,504. */
    fun fromFloat(x: Float): Int {
        val bits = x.toRawBits()
        val sign = (bits ushr 16) and 0x8000
        val magnitude = Float.fromBits(bits and 0x7fffffff)
        if (magnitude < 6.1035156E-5f) return sign or Math.rint(magnitude / SUBNORMAL.toDouble()).toInt()
        val rounded = (bits and 0x7fffffff) + 0xfff + ((bits ushr 13) and 1)
        return sign or minOf((rounded ushr 13) - (112 shl 10), 0x7c00)
    }

    private const val SUBNORMAL = 5.9604645E-8f // 2^-24
}
