package covey.core.codec

import covey.core.CodecException
import covey.core.model.Layout
import covey.core.model.Tensor
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.ln
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sqrt

/** Choosing what to send by what it does to the model, and by the shape of the change. */
internal object Selection {
    /** Kurtosis below which a segment's signs carry more of the energy than a top-k of as many bytes. */
    const val FLAT = 2.4
    private const val SAMPLE = 1 shl 18

    /** Where A and B of one module lie, and its rank and scale. */
    private class Pair(val a: Int, val aSize: Int, val b: Int, val bSize: Int, val rank: Int, val scale: Float)

    /** Refuses a layout whose LoRA factors are not there in pairs. */
    fun check(layout: Layout) {
        pairs(layout)
    }

    /**
     * What a change of each entry by 1 does to the model: of B's column j the norm of A's row j, of A's row j the norm of
     * B's column j, both times the LoRA scale; other entries count 1. Without an adapter, or with one of zeros, all do.
     */
    fun importance(layout: Layout, adapter: FloatArray?): FloatArray {
        val out = FloatArray(layout.size) { 1f }
        val pairs = pairs(layout)
        if (adapter == null || pairs.all { p -> rangesOf(p).all { adapter[it] == 0f } }) return out
        for (p in pairs) {
            val wide = p.aSize / p.rank
            val ofA = FloatArray(p.rank) { j -> norm(p.bSize / p.rank) { adapter[p.b + it * p.rank + j] } } // columns of B
            val ofB = FloatArray(p.rank) { j -> norm(wide) { adapter[p.a + j * wide + it] } } // rows of A
            for (i in 0 until p.aSize) out[p.a + i] = p.scale * ofA[i / wide]
            for (i in 0 until p.bSize) out[p.b + i] = p.scale * ofB[i % p.rank]
        }
        return out
    }

    private fun rangesOf(p: Pair) = (p.a until p.a + p.aSize).asSequence() + (p.b until p.b + p.bSize).asSequence()

    private inline fun norm(count: Int, value: (Int) -> Float): Float {
        var sum = 0.0
        for (i in 0 until count) value(i).toDouble().let { sum += it * it }
        return sqrt(sum).toFloat()
    }

    private fun pairs(layout: Layout): List<Pair> {
        val halves = LinkedHashMap<String, MutableMap<String, IndexedValue<Tensor>>>()
        layout.tensors.withIndex().filter { it.value.kind == "lora_A" || it.value.kind == "lora_B" }
            .forEach { halves.getOrPut(it.value.module) { HashMap() }[it.value.kind] = it }
        return halves.map { (module, found) ->
            val a = found["lora_A"]
            val b = found["lora_B"]
            if (a == null || b == null || b.value.shape.size < 2 || a.value.shape[0] != a.value.rank ||
                b.value.shape[1] != a.value.rank || b.value.size != b.value.shape[0] * a.value.rank
            ) {
                throw CodecException("the stage importance cannot weigh this adapter: the factors of '$module' are no pair")
            }
            Pair(layout.offsets[a.index], a.value.size, layout.offsets[b.index], b.value.size, a.value.rank, abs(a.value.scale).toFloat())
        }
    }

    /** mean(v^4) / mean(v^2)^2: 3 for Gaussian values, 1 where all magnitudes are equal, infinity for zeros. */
    fun kurtosis(v: FloatArray): Double {
        val stride = max(1, v.size / SAMPLE) or 1
        val top = (v.indices step stride).maxOf { abs(v[it]) }.toDouble()
        if (top == 0.0) return Double.POSITIVE_INFINITY
        var second = 0.0
        var fourth = 0.0
        var count = 0
        for (i in v.indices step stride) {
            val square = (v[i] / top) * (v[i] / top)
            second += square
            fourth += square * square
            count++
        }
        return fourth * count / (second * second)
    }

    /** How many segments make one as long, in bytes of signs, as a top-k of this density with a sign an entry. */
    fun segmentsFor(density: Double): Int {
        val entropy = if (density == 1.0) 0.0 else (-density * ln(density) - (1 - density) * ln(1 - density)) / ln(2.0)
        return max(1, ceil(1 / min(1.0, entropy + density)).toInt())
    }
}
