package covey.core.codec

/** Where entries stand: a contiguous run, or indices in strictly ascending order. */
sealed interface Where {
    /** The coordinates [start] until [stop]. */
    data class Run(val start: Int, val stop: Int) : Where

    /** The coordinates [at]. */
    class Indices(val at: IntArray) : Where
}

/** Values at some coordinates of a vector of [size] entries; what is absent is not zero, it was not sent. */
class Entries(val size: Int, val where: Where, val values: FloatArray) {
    /** Number of entries present. */
    val count: Int get() = values.size

    /** The index of entry [i]. */
    fun index(i: Int): Int = when (where) {
        is Where.Run -> where.start + i
        is Where.Indices -> where.at[i]
    }

    /** The same coordinates with other values. */
    fun with(values: FloatArray) = Entries(size, where, values)

    /** Those at [positions] among the entries, ascending. */
    fun only(positions: IntArray) = Entries(
        size, Where.Indices(IntArray(positions.size) { index(positions[it]) }), FloatArray(positions.size) { values[positions[it]] },
    )

    /** `vector[where] += values`, one float32 addition an entry. */
    fun addTo(vector: FloatArray) {
        for (i in values.indices) vector[index(i)] += values[i]
    }

    /** `vector[where] -= values`. */
    fun subtractFrom(vector: FloatArray) {
        for (i in values.indices) vector[index(i)] -= values[i]
    }

    /** The whole vector with zeros where nothing was sent. */
    fun dense(): FloatArray = FloatArray(size).also { out -> for (i in values.indices) out[index(i)] = values[i] }

    companion object {
        /** Every entry of a vector. */
        fun all(vector: FloatArray) = Entries(vector.size, Where.Run(0, vector.size), vector)
    }
}
