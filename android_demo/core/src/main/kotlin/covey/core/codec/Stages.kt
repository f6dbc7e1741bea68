package covey.core.codec

import covey.core.CodecException
import covey.core.model.Layout
import covey.core.model.Prng
import covey.core.wire.StageSpec
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/** The stages that a spec can name: a closed table, part of the protocol. */
internal val STAGES: Map<String, (Layout, Reach, StageSpec) -> Stage> = mapOf(
    "topk" to ::topkStage,
    "importance" to ::importanceStage,
    "adaptive" to ::adaptiveStage,
    "segment" to ::segmentStage,
    "tensor_scale" to ::tensorScaleStage,
    "pack" to ::packStage,
    "levels" to ::levelsStage,
    "affine" to ::affineStage,
)

private val NOTHING = ByteArray(0)

/** `topk{density}`: the floor(density x entries) largest magnitudes, at least one, over all tensors together. */
private fun topkStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val density = spec.arguments("density" to null).number("density", 0.0, 1.0)
    val kept = { entries: Int -> max(1, floor(entries * density).toInt()) }
    return filter(spec, Reach(kept(reach.entries), scaled = reach.scaled), encode = { entries, state, _ ->
        Encoded(entries.only(topk(entries.values, kept(entries.count))), NOTHING, state)
    })
}

/** `importance{density}`: a top-k of how much each entry changes the model, by the norms of the other LoRA factor. */
private fun importanceStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val density = spec.arguments("density" to null).number("density", 0.0, 1.0)
    val kept = { entries: Int -> max(1, floor(entries * density).toInt()) }
    Selection.check(layout)
    return filter(spec, Reach(kept(reach.entries), scaled = reach.scaled), encode = { entries, state, adapter ->
        val weights = Selection.importance(layout, adapter)
        val top = max(1f, entries.values.maxOfOrNull { abs(it) } ?: 1f) // so that a weight cannot make one overflow
        val weighted = FloatArray(entries.count) { entries.values[it] / top * weights[entries.index(it)] }
        Encoded(entries.only(topk(weighted, kept(entries.count))), NOTHING, state)
    })
}

/** `adaptive{density}`: `topk` where a few entries carry the change, the next `segment` of like bytes where not. */
private fun adaptiveStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val density = spec.arguments("density" to null).number("density", 0.0, 1.0)
    val count = min(layout.size, Selection.segmentsFor(density))
    val top = max(1, floor(layout.size * density).toInt())
    val part = segmentStage(layout, reach, StageSpec("segment", mapOf("count" to count.toLong())))
    return filter(
        spec,
        Reach(max(top, part.leaves.entries)),
        init = part.init,
        encode = { entries, state, adapter ->
            if (Selection.kurtosis(entries.values) < Selection.FLAT) {
                part.encode(entries, state, adapter)
            } else {
                Encoded(entries.only(topk(entries.values, top)), NOTHING, state)
            }
        },
        decode = { entries, bytes -> if (entries!!.count <= top) entries else part.decode(entries, bytes) },
    )
}

/** `segment{count}`: one of `count` contiguous segments, the next one each time; the seed picks the first. */
private fun segmentStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val n = layout.size
    val count = spec.arguments("count" to null).whole("count", 1, n)
    if (reach != Reach(n, contiguous = true)) {
        throw CodecException("the stage segment cuts the whole vector: put it first, and once")
    }
    val edge = { segment: Long -> (n.toLong() * segment / count).toInt() }
    return filter(
        spec,
        Reach((n + count - 1) / count, contiguous = true),
        init = { seed -> (Prng.draw(seed, 0).toULong() % count.toULong()).toLong() },
        encode = { entries, state, _ ->
            if (state !in 0 until count) throw CodecException("the state of segment must be in 0..${count - 1}, got $state")
            val run = Where.Run(edge(state), edge(state + 1))
            val values = entries.values.copyOfRange(run.start, run.stop)
            Encoded(Entries(n, run, values), NOTHING, (state + 1) % count)
        },
        decode = { entries, _ ->
            val first = if (entries!!.count == 0) 0 else entries.index(0)
            val last = if (entries.count == 0) 0 else entries.index(entries.count - 1)
            val segment = ((first + 1L) * count - 1) / n // the last one that begins at or before `first`
            if (last >= edge(segment + 1)) {
                refuse("entries ${grouped(first)} to ${grouped(last)} do not lie in one of the $count segments")
            }
            entries
        },
    )
}

/**
 * `tensor_scale{rows}`: divides each tensor's entries by the mean of their magnitudes, which part `scale` carries; with
 * `rows` above 0 each row of at least so many entries has a scale of its own.
 */
private fun tensorScaleStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val rows = spec.arguments("rows" to 0L).whole("rows", 0, Int.MAX_VALUE)
    val offsets = Scale.groups(layout, rows)
    val length = 2 * offsets.size
    return Stage(
        spec, "scale", false, reach.copy(scaled = rows), length.toLong(),
        encode = { entries, state, _ ->
            val lengths = Scale.lengthsIn(entries, offsets)
            val means = Scale.means(entries.values, lengths)
            val worst = means.indices.maxBy { means[it] }
            if (means[worst] >= LARGEST_MEAN) {
                val tensor = layout.tensors[layout.offsets.indexOfLast { it <= offsets[worst] }]
                throw CodecException(
                    "tensor '${tensor.name}' has a mean magnitude of ${means[worst]}, which is no update",
                )
            }
            val scales = IntArray(means.size) { Scale.toBfloat16(means[it]) }
            val divisors = FloatArray(means.size) { if (scales[it] > 0) Scale.fromBfloat16(scales[it]) else 1f }
            val scaled = Scale.perGroup(entries.values, lengths) { v, group -> v / divisors[group] }
            val part = ByteArray(length) { (scales[it / 2] shr (8 * (it % 2))).toByte() }
            Encoded(entries.with(scaled), part, state)
        },
        decode = { entries, part ->
            if (part.size != length) {
                refuse("part 'scale' has ${part.size} bytes, the layout's ${offsets.size} scales need $length")
            }
            val bits = IntArray(offsets.size) { (part[2 * it].toInt() and 0xff) or ((part[2 * it + 1].toInt() and 0xff) shl 8) }
            if (bits.any { it >= 0x7f80 }) refuse("part 'scale' holds a scale that is negative or not finite")
            val scaled = Scale.perGroup(entries!!.values, Scale.lengthsIn(entries, offsets)) { v, group ->
                v * Scale.fromBfloat16(bits[group])
            }
            if (scaled.any { !it.isFinite() }) refuse("a value times its tensor's scale is not finite")
            entries.with(scaled)
        },
    )
}

/** `pack{values, error}`: the packed format SPK1. */
private fun packStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val given = spec.arguments("values" to "auto", "error" to 0.1)
    val mode = given.values.getValue("values") as? String ?: ""
    val error = given.number("error", 1e-4, 1.0)
    if (mode !in Values.MAX_BYTES) {
        throw CodecException("stage pack: unknown values '$mode'; known are ${Values.MAX_BYTES.keys.joinToString()}")
    }
    val groups = reach.scaled?.let { Scale.groups(layout, it) }
    return Stage(
        spec, "packed", true, reach, Spk1.maxBytes(reach.entries, layout.size, mode),
        encode = { entries, state, _ ->
            val filled = if (groups == null) entries else Scale.fillZeroGroups(entries, groups)
            Encoded(filled, Spk1.encode(filled, layout.shortId, mode, error), state)
        },
        decode = { _, part -> Spk1.decode(part, layout.size, layout.shortId, reach.entries) },
    )
}

/** `levels{error}`: LVL1, a few bits for every coordinate. */
private fun levelsStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val error = spec.arguments("error" to null).number("error", 1e-3, 0.95)
    if (!reach.contiguous) throw CodecException("the stage levels takes whole vectors and segments; after topk use pack")
    return Stage(
        spec, "packed", true, reach, Lvl1.maxBytes(reach.entries),
        encode = { entries, state, _ -> Encoded(entries, Lvl1.encode(entries, layout.shortId, error), state) },
        decode = { _, part -> Lvl1.decode(part, layout.size, layout.shortId, reach.entries) },
    )
}

/** `affine{bits}`: AFF1, each output channel with a scale and an offset and 8, 4 or 2 bits an entry. */
private fun affineStage(layout: Layout, reach: Reach, spec: StageSpec): Stage {
    val bits = spec.arguments("bits" to null).whole("bits", 2, 8)
    if (bits !in setOf(2, 4, 8)) throw CodecException("stage affine: bits must be 2, 4 or 8, got $bits")
    if (reach != Reach(layout.size, contiguous = true)) {
        throw CodecException("the stage affine takes the whole vector: let it stand alone")
    }
    return Stage(
        spec, "packed", true, reach, Aff1.maxBytes(layout, bits),
        encode = { entries, state, _ -> Encoded(entries, Aff1.encode(entries.values, layout, bits), state) },
        decode = { _, part -> Entries.all(Aff1.decode(part, layout, bits)) },
    )
}

/** A stage that leaves entries out and writes nothing. */
private fun filter(
    spec: StageSpec,
    leaves: Reach,
    init: (Long) -> Long = { 0 },
    encode: (Entries, Long, FloatArray?) -> Encoded,
    decode: (Entries?, ByteArray) -> Entries = { entries, _ -> entries!! },
) = Stage(spec, "", false, leaves, 0, init, encode, decode)

private val LARGEST_MEAN = Float.fromBits((127 + 90) shl 23) // 2^90: no value times its scale overflows

/** A stage's arguments over their defaults; a default of null marks one that must be given. */
private class Arguments(val stage: String, val values: Map<String, Any?>) {
    fun number(name: String, low: Double, high: Double): Double {
        val value = (values.getValue(name) as? Number)?.toDouble()
        if (value == null || !(value > 0 && value in low..high)) refuse(name, "a number in $low..$high")
        return value
    }

    fun whole(name: String, low: Int, high: Int): Int {
        val value = values.getValue(name) as? Long
        if (value == null || value !in low.toLong()..high.toLong()) refuse(name, "a whole number in $low..$high")
        return value.toInt()
    }

    private fun refuse(name: String, wanted: String): Nothing =
        throw CodecException("stage $stage: $name must be $wanted, got ${values[name]}")
}

private fun StageSpec.arguments(vararg known: Pair<String, Any?>): Arguments {
    val defaults = known.toMap()
    args.keys.firstOrNull { it !in defaults }?.let { throw CodecException("stage $name: unknown argument '${it.take(40)}'") }
    val values = defaults + args
    values.entries.firstOrNull { it.value == null }?.let { throw CodecException("stage $name: the argument '${it.key}' is missing") }
    return Arguments(name, values)
}
