package covey.core.codec

import covey.core.CodecException

/**
 * Exact top-k of the magnitudes in three passes and 256 KB: a histogram of the upper 15 bits of the magnitude's float32
 * pattern finds the bucket that holds the cut, one of the lower 16 bits within that bucket finds the cut itself.
 * Magnitudes sort as their bit patterns do. Of equal ones the lowest positions win.
 */
fun topk(x: FloatArray, k: Int): IntArray {
    if (k !in 0..x.size) throw CodecException("top-k of ${x.size} entries needs k in 0..${x.size}, got $k")
    if (k == 0) return IntArray(0)
    val upper = IntArray(1 shl 15)
    for (i in x.indices) {
        val bits = magnitudeBits(x[i])
        if (bits >= INFINITY) throw CodecException("entry $i of the vector is ${shown(x[i])}; only finite numbers can be sent")
        upper[bits ushr 16]++
    }
    val (bucket, above) = cut(upper, k)
    val lower = IntArray(1 shl 16)
    for (v in x) magnitudeBits(v).let { if (it ushr 16 == bucket) lower[it and 0xffff]++ }
    val (low, aboveLow) = cut(lower, k - above)
    return select(x, (bucket shl 16) or low, k, above + aboveLow)
}

/** The k largest: what is above the cut, and the first of those at it. */
private fun select(x: FloatArray, cut: Int, k: Int, above: Int): IntArray {
    val out = IntArray(k)
    var ties = k - above
    var count = 0
    for (i in x.indices) {
        val bits = magnitudeBits(x[i])
        if (bits > cut || (bits == cut && ties-- > 0)) out[count++] = i
    }
    return out
}

/** The highest bin at which at least [k] are counted from above, and how many lie above it. */
private fun cut(histogram: IntArray, k: Int): Pair<Int, Int> {
    var above = 0
    for (bin in histogram.indices.reversed()) {
        if (above + histogram[bin] >= k) return bin to above
        above += histogram[bin]
    }
    error("fewer than $k entries were counted")
}

private fun magnitudeBits(x: Float): Int = x.toRawBits() and 0x7fffffff

private const val INFINITY = 0x7f800000
