package covey.core.cli

import covey.core.model.Json
import covey.core.model.TokenizerSpec
import covey.core.tokens.coderOf
import java.io.File

/**
 * The ids that :core gives, for a comparison with Python's: standard input has a JSON text a line, standard output gets
 * the ids of its document on one line and those of its row on the next.
 *
 *     java covey.core.cli.IdsKt FOLDER_WITH_TOKENIZER_JSON LIMIT
 */
fun main(arguments: Array<String>) {
    val coder = coderOf(TokenizerSpec("tokenizers", "tokenizer.json", 0, Int.MAX_VALUE, 0, -1, -1), File(arguments[0]))
    val out = System.out.bufferedWriter()
    System.`in`.bufferedReader(Charsets.UTF_8).forEachLine { line ->
        val text = Json.parse(line) as String
        out.appendLine(coder.document(text).joinToString(" ")).appendLine(coder.row(text, arguments[1].toInt()).joinToString(" "))
    }
    out.flush()
}
