package covey.core.cli

import covey.core.ServerException
import covey.core.model.floatsOf
import covey.core.model.toLittleEndian
import covey.core.train.Batch
import covey.core.train.LocalTrainer
import covey.core.train.LossAndGradient
import covey.core.train.Score
import java.io.BufferedOutputStream
import java.io.DataInputStream
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The real ExecuTorch runtime in a Python child, over pipes: see src/test/python/trainer.py for what is said. */
class PipeTrainer(python: String, script: File, bundle: File) : LocalTrainer {
    private val process = ProcessBuilder(python, script.path, bundle.path)
        .redirectError(ProcessBuilder.Redirect.INHERIT).also { it.environment()["OMP_NUM_THREADS"] = "1" }.start()
    private val requests = BufferedOutputStream(process.outputStream, 1 shl 16)
    private val answers = DataInputStream(process.inputStream.buffered(1 shl 16))
    private val entries = answer(12).let { it.int; it.int; it.int }

    override fun lossAndGradient(adapter: FloatArray, batch: Batch): LossAndGradient {
        ask('T', adapter, batch)
        val loss = answer(8).double
        return LossAndGradient(loss, floatsOf(answer(4 * entries).array()))
    }

    override fun evaluate(adapter: FloatArray, batch: Batch): Score {
        ask('E', adapter, batch)
        return answer(24).let { Score(it.double, it.long, it.long) }
    }

    override fun useSecond(values: FloatArray) {
        requests.write('S'.code)
        requests.write(values.toLittleEndian())
    }

    private fun ask(what: Char, adapter: FloatArray, batch: Batch) {
        requests.write(what.code)
        requests.write(adapter.toLittleEndian())
        for (numbers in listOf(batch.inputs, batch.labels)) {
            val bytes = ByteBuffer.allocate(8 * numbers.size).order(ByteOrder.LITTLE_ENDIAN)
            bytes.asLongBuffer().put(numbers)
            requests.write(bytes.array())
        }
        requests.flush()
    }

    private fun answer(length: Int): ByteBuffer {
        val bytes = ByteArray(length)
        try {
            answers.readFully(bytes)
        } catch (_: java.io.EOFException) {
            throw ServerException("the ExecuTorch child process ended; its last words are above")
        }
        return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
    }

    override fun close() {
        process.outputStream.close()
        process.waitFor()
    }
}
