package covey.core.model

import covey.core.BundleException
import covey.core.LayoutException
import covey.core.Reason
import covey.core.because

/** One file of a bundle; [targets] names the runtimes that need it, none means that every device does. */
data class BundleFile(val sha256: String, val bytes: Long, val targets: List<String>)

/** How text becomes tokens. `bytes`: token = byte + [offset]; `tokenizers`: the file at [path]. */
data class TokenizerSpec(
    val kind: String, val path: String, val offset: Int, val vocabSize: Int, val padId: Int, val eosId: Int, val bosId: Int,
)

/**
 * What a device needs of a bundle's `manifest.json`: [labels] are a classifier's, by number. Fields that this client does not use are not read, so that a
 * manifest may gain some; [minimumClient] says when it must not.
 */
class Manifest(
    val model: String,
    val task: String,
    val batchSize: Int,
    val seqLen: Int,
    val labels: List<String>,
    val precision: String,
    val layout: Layout,
    val frozen: Layout?,
    val start: String,
    val tokenizer: TokenizerSpec?,
    val graphs: Map<String, Map<String, String>>,
    val peakBytes: Map<String, Long>,
    val minimumClient: String,
    val files: Map<String, BundleFile>,
) {
    /** The files that a device with this runtime needs. */
    fun filesFor(target: String): Map<String, BundleFile> {
        if (target !in graphs) {
            throw BundleException(
                "the bundle was exported for ${graphs.keys.sorted().joinToString()}, not for $target; " +
                    "export it with --targets $target",
            ).because(Reason.BUNDLE_TARGET, graphs.keys.sorted().joinToString())
        }
        return files.filterValues { it.targets.isEmpty() || target in it.targets }
    }

    /** Refuses a manifest that points at a path outside its own files: a runtime would open whatever lies there. */
    fun requireListed(target: String) {
        val listed = filesFor(target).keys
        for (path in graphs.getValue(target).values + listOf(tokenizer?.path.orEmpty(), start)) {
            if (path.isNotEmpty() && path !in listed) {
                throw BundleException("the bundle's manifest points at '$path', which is not among its files for $target")
            }
        }
    }

    /** Bytes to download for this runtime. */
    fun downloadBytes(target: String): Long = filesFor(target).values.sumOf { it.bytes }

    /** About how much memory training takes: what the export measured, at least the model's file. */
    fun memoryBytes(target: String): Long = maxOf(peakBytes[target] ?: 0, filesFor(target).values.maxOfOrNull { it.bytes } ?: 0)

    companion object {
        /** The bundle format that this client reads. */
        const val FORMAT = 1L

        /** No manifest is longer. */
        const val MAX_BYTES = 16 * (1 shl 20)

        /** The inverse of the export's writer; throws [BundleException] with what is wrong. */
        fun fromBytes(data: ByteArray): Manifest {
            if (data.size > MAX_BYTES) throw BundleException("the manifest has ${data.size} bytes, more than $MAX_BYTES")
            val json = Json.parse(data.toString(Charsets.UTF_8)) as? Map<*, *>
                ?: throw BundleException("the manifest is not a JSON object")
            try {
                return read(Node(json))
            } catch (error: LayoutException) {
                throw BundleException("the manifest is damaged: ${error.sentence}")
            }
        }

        private fun read(root: Node): Manifest {
            val format = root.whole("format", 0..Long.MAX_VALUE)
            if (format != FORMAT) {
                throw BundleException("the bundle has format $format, this client reads format $FORMAT: update the older one")
                    .because(Reason.BUNDLE_NEWER, "$format")
            }
            val layout = Layout.fromJson(root.value("layout"))
            if (layout.digest != root.text("layout_digest")) {
                throw BundleException("the manifest's layout does not have the digest that the manifest states")
            }
            val frozen = root.value("frozen")
            return Manifest(
                root.text("model"), root.text("task"), root.whole("batch_size", 1..65_536L).toInt(),
                root.whole("seq_len", 0..1_048_576L).toInt(), root.textList("labels"), root.text("precision"), layout,
                frozen?.let(Layout::fromJson), root.text("start"),
                root.value("tokenizer")?.let { tokenizer(Node.of(it)) },
                root.node("graphs").nodes { roles -> roles.texts() },
                root.node("parity").nodes { it.whole("peak_bytes", 0..Long.MAX_VALUE) },
                root.text("minimum_client"),
                root.node("files").nodes(::file).onEach { (path, _) -> checkPath(path) },
            )
        }

        private fun tokenizer(node: Node): TokenizerSpec {
            val id = { name: String -> node.whole(name, -1..Int.MAX_VALUE.toLong()).toInt() }
            return TokenizerSpec(
                node.text("kind"), node.text("path"), id("offset"), id("vocab_size"), id("pad_id"), id("eos_id"), id("bos_id"),
            )
        }

        private fun file(node: Node): BundleFile {
            val digest = node.text("sha256")
            if (!DIGEST.matches(digest)) throw BundleException("the manifest holds a file with digest '${digest.take(80)}'")
            return BundleFile(digest, node.whole("bytes", 0..Long.MAX_VALUE), node.textList("targets"))
        }

        private fun checkPath(path: String) {
            if (!SAFE_PATH.matches(path) || ".." in path) {
                throw BundleException("the bundle names the file '${path.take(80)}', which is not a safe relative path")
            }
        }

        private val DIGEST = Regex("[0-9a-f]{64}")
        private val SAFE_PATH = Regex("[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
    }
}

private fun bad(field: String): Nothing = throw BundleException("the manifest's field '$field' does not hold what it should")

/** A JSON object read field by field. */
private class Node(private val fields: Map<*, *>) {
    fun value(name: String): Any? = fields[name]
    fun text(name: String): String = fields[name] as? String ?: bad(name)
    fun node(name: String): Node = of(fields[name] ?: bad(name))
    fun whole(name: String, range: LongRange): Long = (fields[name] as? Long)?.takeIf { it in range } ?: bad(name)

    /** A list of texts. */
    fun textList(name: String): List<String> = (fields[name] as? List<*>)?.map { it as? String ?: bad(name) } ?: bad(name)

    /** Every field as an object, made into something. */
    fun <T> nodes(make: (Node) -> T): Map<String, T> = fields.entries.associate { (k, v) -> k as String to make(of(v)) }

    /** Every field as a text. */
    fun texts(): Map<String, String> = fields.entries.associate { (k, v) -> k as String to (v as? String ?: bad(k)) }

    companion object {
        fun of(json: Any?): Node = Node(json as? Map<*, *> ?: throw BundleException("the manifest holds no object where one belongs"))
    }
}
