package covey.core.tokens

import covey.core.BundleException
import covey.core.model.TokenizerSpec
import java.io.File
import java.io.IOException

/** Text to token ids. */
interface Coder {
    /** All ids of a text, with the start and end marks that the model knows, for packing. */
    fun document(text: String): IntArray

    /** At most [limit] ids of one example, as the model's own tokenizer frames it (`[CLS] ... [SEP]`). */
    fun row(text: String, limit: Int): IntArray
}

/**
 * The coder that a manifest describes; its file, if it has one, lies in the bundle's [folder]. Throws
 * [covey.core.BundleException] that names the component where the tokenizer has one that is not known here; an app may
 * bring a [Coder] of its own for it.
 */
fun coderOf(spec: TokenizerSpec, folder: File): Coder = when (spec.kind) {
    "bytes" -> ByteCoder(spec)
    "tokenizers" -> TokenizerFile.parse(read(File(folder, spec.path)), spec)
    else -> throw BundleException("the model has a tokenizer of the kind '${spec.kind.take(40)}', which this app does not know: update it")
}

private fun read(file: File): String {
    if (file.length() > TokenizerFile.MAX_BYTES) throw BundleException("the model's tokenizer has ${file.length()} bytes, more than ${TokenizerFile.MAX_BYTES}")
    return try {
        file.readText()
    } catch (error: IOException) {
        throw BundleException("the model's tokenizer cannot be read: ${error.message}")
    }
}

/** Token = byte of UTF-8 + offset, the model's marks around (ByT5, Xue et al. 2022). */
private class ByteCoder(private val spec: TokenizerSpec) : Coder {
    override fun document(text: String): IntArray {
        val bytes = text.toByteArray()
        return framed(IntArray(bytes.size) { (bytes[it].toInt() and 0xff) + spec.offset }, spec)
    }

    override fun row(text: String, limit: Int): IntArray {
        val ids = document(text)
        return if (ids.size <= limit) ids else ids.copyOf(limit - 1) + ids.last()
    }
}

/** The ids between the marks of a document. */
internal fun framed(ids: IntArray, spec: TokenizerSpec): IntArray {
    val mark = { id: Int -> if (id >= 0) intArrayOf(id) else IntArray(0) }
    return mark(spec.bosId) + ids + mark(spec.eosId)
}
