package covey.app

import covey.core.train.Batch
import covey.core.train.LocalTrainer
import covey.core.train.LossAndGradient
import covey.core.train.Score
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File
import java.nio.FloatBuffer

/**
 * The runtime on a phone: ExecuTorch's plain [Module], whose methods `train` and `eval` take the adapter as an input and
 * give its gradient as an output. The file is mapped, so the frozen model is paged in and out by the system and counts
 * little against the app; buffers are made once. The only file that knows ExecuTorch.
 */
class ExecuTorchTrainer(model: File, entries: Int, frozenEntries: Int, rows: Int, columns: Int, classes: Boolean = false) :
    LocalTrainer {
    private val module = Module.load(model.path, Module.LOAD_MODE_MMAP)
    private val adapterData = Tensor.allocateFloatBuffer(entries)
    private val inputData = Tensor.allocateLongBuffer(rows * columns)
    private val labelData = Tensor.allocateLongBuffer(if (classes) rows else rows * columns)
    private val secondData = if (frozenEntries > 0) Tensor.allocateFloatBuffer(frozenEntries) else null
    private val gradient = FloatArray(entries)
    private val inputs: Array<EValue>

    init {
        val shape = longArrayOf(rows.toLong(), columns.toLong())
        val labels = if (classes) longArrayOf(rows.toLong()) else shape
        val adapter = EValue.from(Tensor.fromBlob(adapterData, longArrayOf(entries.toLong())))
        val frozen = secondData?.let { listOf(EValue.from(Tensor.fromBlob(it, longArrayOf(frozenEntries.toLong())))) }.orEmpty()
        val batch = listOf(inputData to shape, labelData to labels).map { (data, of) -> EValue.from(Tensor.fromBlob(data, of)) }
        inputs = (listOf(adapter) + frozen + batch).toTypedArray()
    }

    override fun lossAndGradient(adapter: FloatArray, batch: Batch): LossAndGradient {
        fill(adapter, batch)
        val (loss, gradients) = module.execute("train", *inputs)
        gradients.toTensor().copyDataInto(FloatBuffer.wrap(gradient))
        return LossAndGradient(loss.toTensor().dataAsFloatArray[0].toDouble(), gradient)
    }

    override fun evaluate(adapter: FloatArray, batch: Batch): Score {
        fill(adapter, batch)
        val (loss, tokens, correct) = module.execute("eval", *inputs)
        return Score(
            loss.toTensor().dataAsFloatArray[0].toDouble(), tokens.toTensor().dataAsLongArray[0], correct.toTensor().dataAsLongArray[0],
        )
    }

    override fun useSecond(values: FloatArray) {
        secondData?.run { rewind(); put(values); rewind() } ?: super.useSecond(values)
    }

    private fun fill(adapter: FloatArray, batch: Batch) {
        adapterData.run { rewind(); put(adapter); rewind() }
        inputData.run { rewind(); put(batch.inputs); rewind() }
        labelData.run { rewind(); put(batch.labels); rewind() }
    }

    override fun close() = module.destroy()
}
