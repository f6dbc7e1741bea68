package covey.core

import covey.core.model.Prng
import covey.core.model.pythonReal
import covey.core.train.AdamW
import covey.core.train.Batch
import covey.core.train.Examples
import covey.core.train.IGNORED
import covey.core.train.LocalRound
import covey.core.train.LocalTrainer
import covey.core.train.LossAndGradient
import covey.core.train.Progress
import covey.core.train.Score
import covey.core.train.Sgd
import covey.core.train.clip
import covey.core.train.decodeText
import covey.core.train.evaluationBatches
import covey.core.train.factorwise
import covey.core.train.searchFusion
import covey.core.train.split
import covey.core.train.splitBlocks
import covey.core.train.trainingBatch
import covey.core.wire.LocalConfig
import covey.core.client.TrainingRecord
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import kotlin.math.abs

/** A quadratic bowl around [goal] in place of a model: the loss is half the squared distance. */
class Bowl(private val goal: FloatArray) : LocalTrainer {
    var calls = 0

    override fun lossAndGradient(adapter: FloatArray, batch: Batch): LossAndGradient {
        calls++
        val pull = 1 + (batch.inputs.sum() % 7) / 100f // so that the order of batches matters
        val gradient = FloatArray(goal.size) { pull * (adapter[it] - goal[it]) }
        return LossAndGradient(gradient.sumOf { it.toDouble() * it } / 2, gradient)
    }

    override fun evaluate(adapter: FloatArray, batch: Batch): Score {
        val counted = batch.labels.count { it != IGNORED }.toLong()
        return Score(adapter.indices.sumOf { abs(adapter[it] - goal[it]).toDouble() } * counted, counted, 0)
    }

    override fun close() = Unit
}

class TrainTest {
    private val config = LocalConfig("adamw", 0.05, 40, 0.9, 0.9, 0.999, 1e-8, 0.01, 1.0, true)
    private val examples = Examples.windows(IntArray(400) { it % 251 }, 16, 0)

    @Test
    fun `optimisers take the steps of Python's docstrings`() {
        val sgd = Sgd(0.5, 0.0, 0.0)
        val a = floatArrayOf(1f, 2f)
        sgd.update(a, floatArrayOf(2f, 0f), sgd.init(2))
        assertArrayEquals(floatArrayOf(0f, 2f), a)
        val adam = AdamW(0.1, 0.9, 0.999, 1e-8, 0.0)
        val b = floatArrayOf(1f, 2f)
        adam.update(b, floatArrayOf(4f, -1f), adam.init(2))
        assertArrayEquals(floatArrayOf(0.9f, 2.1f), b, 1e-6f)
        val c = floatArrayOf(3f, 4f)
        clip(c, 1.0)
        assertArrayEquals(floatArrayOf(0.6f, 0.8f), c, 1e-7f)
    }

    @Test
    fun `momentum and weight decay act`() {
        val rule = Sgd(0.1, 0.9, 0.1)
        val x = floatArrayOf(1f)
        var state = rule.init(1)
        repeat(2) { state = rule.update(x, floatArrayOf(1f), state) }
        // velocity 1.1 then 0.99 + 1 + 0.1 * 0.89
        assertEquals(1 - 0.1 * 1.1 - 0.1 * (0.9 * 1.1 + 1 + 0.1 * 0.89), x[0].toDouble(), 1e-6)
        assertEquals(2, state.step)
    }

    @Test
    fun `windows overlap by one token and padding does not count`() {
        val made = Examples.windows(intArrayOf(1, 2, 3, 4, 5, 6), 4, 0)
        val batch = made.batch(intArrayOf(0, 1), 3)
        assertArrayEquals(longArrayOf(1, 2, 3, 4, 4, 5, 6, 0, 1, 2, 3, 4), batch.inputs)
        assertArrayEquals(longArrayOf(1, 2, 3, 4, 4, 5, 6, IGNORED) + LongArray(4) { IGNORED }, batch.labels)
        assertEquals(0, Examples.windows(intArrayOf(1), 4, 0).count)
    }

    @Test
    fun `the held out part is Python's`() {
        assertEquals(listOf(4, 9), splitBlocks(10, 0.2).second.asList())
        assertThrows(UsageException::class.java) { split(Examples.windows(intArrayOf(1, 2), 4, 0), 0.2) }
    }

    @Test
    fun `every example is seen once before any is seen twice`() {
        val seen = HashMap<List<Long>, Int>()
        val steps = examples.count // batches of 2: two epochs
        for (step in 0 until steps) {
            val batch = trainingBatch(examples, 2, 9, step)
            for (row in 0..1) seen.merge(batch.inputs.slice(row * 16 until row * 16 + 16), 1, Int::plus)
        }
        assertTrue(seen.values.all { it == 2 } && seen.size == examples.count)
        assertEquals(3, evaluationBatches(examples, 4, 3).count())
    }

    @Test
    fun `a round that is saved after any step goes on with the same bits`() {
        val goal = FloatArray(50) { it * 0.01f }
        val seed = LocalRound.seed(7, 3, "ada")
        fun round() = LocalRound(Bowl(goal), examples, 4, config, seed)
        var whole = round().begin(FloatArray(50))
        while (!round().done(whole)) whole = round().step(whole)
        var broken: Progress = round().begin(FloatArray(50))
        while (!round().done(broken)) {
            broken = round().step(broken)
            broken = TrainingRecord.fromBytes(TrainingRecord.of("t", 3, 0, 2, broken).toBytes()).progress()
        }
        assertSameBits(whole.adapter, broken.adapter)
        assertEquals(whole.lossAfter, broken.lossAfter)
        assertTrue(whole.lossAfter < whole.lossBefore)
    }

    @Test
    fun `a loss that is not a number ends the round`() {
        val round = LocalRound(Bowl(FloatArray(2) { Float.POSITIVE_INFINITY }), examples, 2, config, 1)
        val error = assertThrows(TrainingException::class.java) { round.step(round.begin(FloatArray(2))) }
        assertTrue("learning_rate" in error.sentence)
    }

    @Test
    fun `fusion finds better weights than the start`() {
        val shared = FloatArray(20) { 1f }
        val personal = FloatArray(20) { if (it % 2 == 0) 1f else -1f }
        val goal = FloatArray(20) { 0.7f * shared[it] + 0.4f * personal[it] }
        val found = searchFusion(120, 0.0) { w1, w2 ->
            val mixed = factorwise(shared, personal, w1, w2)
            mixed.indices.sumOf { val d = (mixed[it] - goal[it]).toDouble(); d * d }
        }
        assertEquals(0.7, found.shared, 0.05)
        assertEquals(0.4, found.personal, 0.05)
    }

    @Test
    fun `text is told from what is none`() {
        assertEquals("café", decodeText("café".toByteArray()))
        assertEquals("é", decodeText("\uFEFFé".toByteArray(Charsets.UTF_16LE)))
        assertNull(decodeText(byteArrayOf(0x7f, 0x45, 0x4c, 0x46, 0, 1)))
        assertNull(decodeText(byteArrayOf(-1, 1, 2)))
    }

    @Test
    fun `numbers are written as Python writes them`() {
        val written = mapOf(
            2.0 to "2.0", 0.5 to "0.5", 1e-5 to "1e-05", 0.0001 to "0.0001", 1e16 to "1e+16", 123456789012345680.0 to "1.2345678901234568e+17",
            0.1 to "0.1", 2.0 / 3 to "0.6666666666666666", -3.25 to "-3.25", 100.0 to "100.0", 5e-324 to "5e-324", 1.5e300 to "1.5e+300",
        )
        for ((x, text) in written) assertEquals(text, pythonReal(x))
    }

    @Test
    fun `a shuffle is a permutation`() {
        assertEquals((0 until 1000).toList(), Prng.permutation(3, 1000).sorted())
    }
}
