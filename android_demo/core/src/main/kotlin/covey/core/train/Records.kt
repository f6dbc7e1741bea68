package covey.core.train

import covey.core.BundleException
import covey.core.Reason
import covey.core.UsageException
import covey.core.because
import covey.core.model.Json
import covey.core.model.Manifest
import covey.core.tokens.Coder

/** One piece of text, where it came from, and its class as the record states it: a number ([Long]) or a name. */
class Document(val name: String, val text: String, val label: Any = -1L)

/**
 * A person's texts, name and content each, as what the bundle's task trains on: whole texts for a language model, labelled
 * records for a classifier, each a JSON object on a line of its own with the fields `text` and `label`. It can be called
 * before anything large is downloaded: data is the likelier of the two to be wrong.
 */
fun documentsOf(texts: List<Pair<String, String>>, manifest: Manifest): List<Document> {
    val documents = when (manifest.task) {
        "causal-lm" -> texts.map { (name, text) -> Document(name, text) }.filter { it.text.isNotBlank() }
        "sequence-classification" -> texts.flatMap { (name, text) -> records(name, text) }
        else -> throw BundleException("the task is ${manifest.task.take(40)}, and this app trains on text alone").because(Reason.TASK_KIND, manifest.task.take(40))
    }
    if (documents.isEmpty()) throw UsageException("there is no text to learn from").because(Reason.DATA_NONE)
    if (manifest.task != "causal-lm") documents.forEach { classOf(it, manifest.labels) }
    return documents
}

/** The examples of a bundle's task: packed windows, or one row a record; [share] of them is held out, in (0, 0.5]. */
fun datasetOf(documents: List<Document>, coder: Coder, manifest: Manifest, share: Double): Dataset {
    val pad = manifest.tokenizer?.padId ?: throw BundleException("the task is ${manifest.task.take(40)}, and this app trains on text alone")
    if (manifest.task == "causal-lm") {
        val tokens = documents.map { coder.document(it.text) }.reduce { all, more -> all + more }
        return split(Examples.windows(tokens, manifest.seqLen, pad), share)
    }
    val rows = documents.map { coder.row(it.text, manifest.seqLen) }
    val classes = IntArray(documents.size) { classOf(documents[it], manifest.labels) }
    return splitRows(Examples.rows(rows, classes, manifest.seqLen, pad), share, "labelled records")
}

/** The number of a document's class. */
internal fun classOf(document: Document, labels: List<String>): Int {
    val label = document.label
    val named = labels.indexOf(label as? String)
    val number = label as? Long ?: (label as String).trim().takeIf { t -> t.isNotEmpty() && t.all { it in '0'..'9' } }?.toLongOrNull() ?: -1
    if (named < 0 && number !in labels.indices) {
        val known = labels.take(6).joinToString() + if (labels.size > 6) ", ..." else ""
        throw UsageException("${document.name} has the label '${"$label".take(40)}', this task has the classes 0 to ${labels.size - 1} ($known)")
            .because(Reason.DATA_LABEL, document.name, "$label".take(40), known)
    }
    return if (named >= 0) named else number.toInt()
}

private fun records(name: String, text: String): List<Document> = text.split('\n').withIndex().filter { it.value.isNotBlank() }
    .map { (number, line) -> record("$name, line ${number + 1}", line) }.filter { it.text.isNotBlank() }

private fun record(where: String, line: String): Document {
    val json = try {
        Json.parse(line)
    } catch (_: BundleException) {
        null
    }
    fun refuse(what: String): Nothing = throw UsageException("$where $what").because(Reason.DATA_RECORD, where)
    val fields = json as? Map<*, *> ?: refuse("is no JSON object: this task learns from lines like {\"text\": \"...\", \"label\": \"...\"}")
    val text = fields["text"] as? String ?: refuse("has no text in 'text'")
    val label = fields["label"].takeIf { it is String || it is Long } ?: refuse("has no label in 'label', expected a number or a name")
    return Document(where, text, label)
}
