package covey.core.codec

import covey.core.model.Layout
import kotlin.math.abs

/**
 * One scale a tensor, or a long row of one: the mean magnitude of its entries as bfloat16. What the stage `tensor_scale`
 * does.
 */
internal object Scale {
    /**
     * Where each group of entries with a scale of its own begins: each tensor, or, with [rows] above 0, each row of a
     * tensor whose rows have at least so many entries.
     */
    fun groups(layout: Layout, rows: Int): IntArray = layout.tensors.indices.flatMap { at ->
        val tensor = layout.tensors[at]
        val offset = layout.offsets[at]
        val width = if (tensor.shape.size > 1) tensor.size / tensor.shape[0] else 0
        if (rows in 1..width) (0 until tensor.size step width).map { offset + it } else listOf(offset)
    }.toIntArray()

    /** Entries in each group; [offsets] are the groups' starts. */
    fun lengthsIn(entries: Entries, offsets: IntArray): IntArray {
        val edges = offsets + entries.size
        val reached = IntArray(edges.size) { below(entries, edges[it]) }
        return IntArray(offsets.size) { reached[it + 1] - reached[it] }
    }

    /** How many entries have an index below [edge]. */
    private fun below(entries: Entries, edge: Int): Int = when (val where = entries.where) {
        is Where.Run -> edge.coerceIn(where.start, where.stop) - where.start
        is Where.Indices -> where.at.asList().binarySearch(edge).let { if (it < 0) -it - 1 else it }
    }

    /** The mean magnitude of each consecutive group of values, 0 for an empty one. */
    fun means(values: FloatArray, lengths: IntArray): FloatArray {
        var at = 0
        return FloatArray(lengths.size) { group ->
            var sum = 0.0
            repeat(lengths[group]) { sum += abs(values[at++]) }
            if (lengths[group] == 0) 0f else (sum / lengths[group]).toFloat()
        }
    }

    /** [values] with [change] applied to each, given its group's number. */
    inline fun perGroup(values: FloatArray, lengths: IntArray, change: (Float, Int) -> Float): FloatArray {
        val out = FloatArray(values.size)
        var at = 0
        for (group in lengths.indices) repeat(lengths[group]) { out[at] = change(values[at], group); at++ }
        return out
    }

    /** Ones where a group is all zeros: its scale is 0, and zeros would weaken the magnitude that all signs share. */
    fun fillZeroGroups(entries: Entries, offsets: IntArray): Entries {
        val lengths = lengthsIn(entries, offsets)
        val means = means(entries.values, lengths)
        return entries.with(perGroup(entries.values, lengths) { v, group -> if (means[group] == 0f) 1f else v })
    }

    /** The upper half of a float32 >= 0, rounded to nearest; what is not zero stays so, and finite. */
    fun toBfloat16(x: Float): Int {
        val bits = x.toRawBits()
        return ((bits.toLong() + 0x8000) shr 16).toInt().coerceIn(if (bits > 0) 1 else 0, 0x7f7f)
    }

    fun fromBfloat16(bits: Int): Float = Float.fromBits(bits shl 16)
}
