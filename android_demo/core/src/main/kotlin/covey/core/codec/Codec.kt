package covey.core.codec

import covey.core.CodecException
import covey.core.model.Layout
import covey.core.wire.CodecMemory
import covey.core.wire.StageSpec

/** What an encoder sends: the parts that its stages wrote, by name. */
typealias Parts = Map<String, ByteArray>

/**
 * What reaches or leaves a stage: so many entries at most, in one contiguous run or not. [scaled]: null, or by how
 * `tensor_scale` grouped them, its argument `rows`.
 */
internal data class Reach(val entries: Int, val contiguous: Boolean = false, val scaled: Int? = null)

/** What a stage makes of entries: what is left to send, its own part (empty if it has none), its next state. */
internal class Encoded(val entries: Entries, val part: ByteArray, val state: Long)

/**
 * One stage, bound to a layout and to its place in a chain. [part] names what it writes, empty for nothing, at most
 * [maxBytes] long; [leaves] is what the next stage has to expect. Only a [final] stage turns entries into bytes.
 */
internal class Stage(
    val spec: StageSpec,
    val part: String,
    val final: Boolean,
    val leaves: Reach,
    val maxBytes: Long,
    val init: (seed: Long) -> Long = { 0 },
    val encode: (Entries, state: Long, adapter: FloatArray?) -> Encoded,
    val decode: (Entries?, ByteArray) -> Entries,
)

/**
 * A chain of stages for vectors of one layout. Encoding runs the stages in order, decoding in reverse. With
 * [errorFeedback] the encoder keeps what the decoder will not see and adds it to the next vector (Seide et al. 2014).
 *
 * The memory goes in and comes out: keep the old one until the receiver has acknowledged, so that an update that never
 * arrives is not counted as sent.
 */
class Codec internal constructor(private val layout: Layout, private val stages: List<Stage>, val errorFeedback: Boolean) {
    /** No encoded vector has more entries. */
    val maxEntries: Int get() = stages.last().leaves.entries

    /** The memory before the first vector; [seed] decides which segment comes first. */
    fun init(seed: Long) = CodecMemory(stages.map { it.init(seed) }, ByteArray(0))

    /**
     * The parts to send and the next memory; throws [CodecException] for a vector that is not finite. A stage that chooses
     * by what a change does to the model looks at [adapter], the one that the change led to.
     */
    fun encode(vector: FloatArray, memory: CodecMemory, adapter: FloatArray? = null): Pair<Parts, CodecMemory> {
        if (memory.stages.size != stages.size) throw CodecException("the codec's memory is of another chain; make one with init")
        val wanted = if (errorFeedback) memory.addedTo(vector) else vector
        checkVector(wanted)
        var entries = Entries.all(wanted)
        val parts = LinkedHashMap<String, ByteArray>()
        val states = stages.zip(memory.stages).map { (stage, state) ->
            val encoded = stage.encode(entries, state, adapter)
            entries = encoded.entries
            if (stage.part.isNotEmpty()) parts[stage.part] = encoded.part
            encoded.state
        }
        if (!errorFeedback) return parts to CodecMemory(states, ByteArray(0))
        decode(parts).subtractFrom(wanted)
        return parts to CodecMemory.of(states, wanted)
    }

    /** The entries; throws [covey.core.PayloadException] for parts that the chain cannot have written. */
    fun decode(parts: Parts): Entries {
        checkParts(parts)
        val final = stages.last()
        return stages.dropLast(1).foldRight(final.decode(null, parts.getValue(final.part))) { stage, entries ->
            stage.decode(entries, parts[stage.part] ?: ByteArray(0))
        }
    }

    private fun checkVector(vector: FloatArray) {
        if (vector.size != layout.size) throw CodecException("the codec takes ${layout.size} entries, got ${vector.size}")
        val bad = vector.indexOfFirst { !it.isFinite() }
        if (bad >= 0) throw CodecException("entry $bad of the vector is ${shown(vector[bad])}; only finite numbers can be sent")
    }

    private fun checkParts(parts: Parts) {
        val expected = stages.filter { it.part.isNotEmpty() }.associateBy { it.part }
        if (parts.keys != expected.keys) {
            val sent = parts.keys.take(8).map { it.take(40) }.sorted().joinToString().ifEmpty { "none" }
            refuse("the codec's parts are ${expected.keys.sorted().joinToString()}; sent were $sent")
        }
        for ((name, stage) in expected) {
            val size = parts.getValue(name).size
            if (size > stage.maxBytes) {
                refuse("part '$name' has ${grouped(size)} bytes, at most ${grouped(stage.maxBytes)} are accepted", 413)
            }
        }
    }
}

/** The codec that a task or a message names. Throws [CodecException] for a stage or argument that is not known. */
fun codecFromSpec(spec: List<StageSpec>, layout: Layout, errorFeedback: Boolean = false): Codec {
    val stages = ArrayList<Stage>()
    var reach = Reach(layout.size, contiguous = true)
    for (item in spec) {
        val stage = (STAGES[item.name] ?: throw CodecException("unknown codec stage '${item.name}'"))(layout, reach, item)
        stages += stage
        reach = stage.leaves
    }
    if (stages.lastOrNull()?.final != true || stages.dropLast(1).any { it.final }) {
        throw CodecException("a codec must end with the one stage that writes bytes, pack or levels")
    }
    val parts = stages.map { it.part }.filter { it.isNotEmpty() }
    if (parts.toSet().size != parts.size) throw CodecException("two stages of the codec write the same part")
    return Codec(layout, stages, errorFeedback)
}
