"""A client that does not train: what it got plus one, so that the result shows how many rounds were really averaged.

And a little noise of its own: Flower stores objects by content and would send equal arrays of several clients once.
"""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One answer."""
    array = message.content["arrays"].to_numpy_ndarrays()[0]
    noise = np.random.default_rng(abs(context.node_id)).standard_normal(array.shape, np.float32)
    array = array + np.float32(1) + np.float32(1e-3) * noise
    content = RecordDict({"arrays": ArrayRecord([array]), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)
