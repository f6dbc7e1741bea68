package covey.core.train

import covey.core.Reason
import covey.core.UsageException
import covey.core.because
import covey.core.model.Prng

/**
 * Rows of tokens: example i is `ids[i]`, padded on the right, of which the first `lengths[i]` are real. [classes] has the
 * class of each for a classifier; without, the targets are those of a language model, its own tokens.
 */
class Examples(val seqLen: Int, private val ids: List<IntArray>, private val lengths: IntArray, private val classes: IntArray? = null) {
    /** Number of examples. */
    val count: Int get() = ids.size

    /** The examples at these positions. */
    fun take(where: IntArray) = Examples(
        seqLen, where.map { ids[it] }, IntArray(where.size) { lengths[where[it]] }, classes?.let { all -> IntArray(where.size) { all[where[it]] } },
    )

    /**
     * These examples as a graph takes them. What is short of [batchSize] is filled with copies whose labels do not
     * count; copies and not padding, since some kernels answer a row without a real token with NaN.
     */
    fun batch(where: IntArray, batchSize: Int): Batch {
        val inputs = LongArray(batchSize * seqLen)
        for (row in 0 until batchSize) {
            val example = ids[where[row % where.size]]
            for (column in 0 until seqLen) inputs[row * seqLen + column] = example[column].toLong()
        }
        return Batch(batchSize, seqLen, inputs, classes?.let { classLabels(it, where, batchSize) } ?: tokenLabels(where, inputs))
    }

    private fun classLabels(classes: IntArray, where: IntArray, batchSize: Int) =
        LongArray(batchSize) { row -> if (row < where.size) classes[where[row]].toLong() else IGNORED }

    private fun tokenLabels(where: IntArray, inputs: LongArray) = LongArray(inputs.size) { at ->
        val row = at / seqLen
        if (row < where.size && at % seqLen < lengths[where[row]]) inputs[at] else IGNORED
    }

    companion object {
        /** Windows of [seqLen] tokens, each starting with the last token of the one before. */
        fun windows(tokens: IntArray, seqLen: Int, padId: Int): Examples {
            val stride = seqLen - 1
            val count = maxOf(0, (tokens.size - 1 + stride - 1) / stride)
            val ids = List(count) { i -> IntArray(seqLen) { tokens.getOrElse(i * stride + it) { padId } } }
            return Examples(seqLen, ids, IntArray(count) { minOf(seqLen, tokens.size - it * stride) })
        }

        /** One example a row of ids, each of at most [seqLen], with its class. */
        fun rows(rows: List<IntArray>, classes: IntArray, seqLen: Int, padId: Int): Examples {
            val ids = rows.map { row -> IntArray(seqLen) { row.getOrElse(it) { padId } } }
            return Examples(seqLen, ids, IntArray(rows.size) { rows[it].size }, classes)
        }
    }
}

/** A device's own examples in two parts. */
class Dataset(val train: Examples, val heldout: Examples)

/** Splits the windows of a text: up to eight contiguous stretches are held out, [share] of all, in (0, 0.5]. */
fun split(examples: Examples, share: Double): Dataset =
    parts(examples, splitBlocks(examples.count, share), "windows of ${examples.seqLen} tokens")

/** Splits examples, each of them for itself, [unit] by name: a fixed draw, since records may be sorted by class. */
fun splitRows(examples: Examples, share: Double, unit: String): Dataset = parts(examples, splitDrawn(examples.count, share), unit)

private fun parts(examples: Examples, where: Pair<IntArray, IntArray>, unit: String): Dataset {
    val (train, heldout) = where
    if (train.isEmpty() || heldout.isEmpty()) {
        throw UsageException("too little data: it makes ${examples.count} $unit, and at least 2 are needed, one of them held out")
            .because(Reason.DATA_SMALL, examples.count)
    }
    return Dataset(examples.take(train), examples.take(heldout))
}

/** How many are held out: at least one, and one stays. */
private fun heldOut(count: Int, share: Double): Int = minOf(maxOf(1, Math.rint(count * share).toInt()), maxOf(0, count - 1))

/** Positions to train on and to hold out: equal stretches, the last part of each held out. */
internal fun splitBlocks(count: Int, share: Double): Pair<IntArray, IntArray> {
    val held = heldOut(count, share)
    val out = BooleanArray(count)
    val blocks = minOf(8, held)
    for (i in 0 until blocks) {
        val end = (count.toLong() * (i + 1) / blocks).toInt()
        val size = held * (i + 1) / blocks - held * i / blocks
        out.fill(true, end - size, end)
    }
    return (0 until count).partition { !out[it] }.let { (train, heldout) -> train.toIntArray() to heldout.toIntArray() }
}

/** Positions to train on and to hold out, drawn by a fixed stream. */
internal fun splitDrawn(count: Int, share: Double): Pair<IntArray, IntArray> {
    val held = heldOut(count, share)
    val order = Prng.permutation(Prng.derive("holdout", count), count).asList()
    return order.drop(held).sorted().toIntArray() to order.take(held).sorted().toIntArray()
}

/**
 * The batch of one step: [batchSize] positions further along endless shuffles of the examples. A function of seed and
 * step alone, so that a killed round goes on with the same batches.
 */
fun trainingBatch(examples: Examples, batchSize: Int, seed: Long, step: Int): Batch {
    val first = step.toLong() * batchSize
    var epoch = -1L
    var order = IntArray(0)
    val where = IntArray(batchSize) {
        val at = first + it
        if (at / examples.count != epoch) {
            epoch = at / examples.count
            order = Prng.permutation(Prng.derive(seed, epoch), examples.count)
        }
        order[(at % examples.count).toInt()]
    }
    return examples.batch(where, batchSize)
}

/** All examples in order, or [limit] batches of them taken at equal distances; 0 = all. */
fun evaluationBatches(examples: Examples, batchSize: Int, limit: Int): Sequence<Batch> {
    val count = if (limit > 0) minOf(examples.count, limit * batchSize) else examples.count
    val chosen = IntArray(count) { (it.toLong() * examples.count / count).toInt() }
    return chosen.asList().chunked(batchSize).asSequence().map { examples.batch(it.toIntArray(), batchSize) }
}
